"""pretrained/: the filters of the project restore without training, and say what they are."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, golden_figures, run_command, write_nifti
from synthetic import upscale

from degrading.acquisition import make_low
from degrading.degradation import degradation_of
from degrading.likeness import Weights
from disk.filters import PRETRAINED, load_filters
from filter_constant import Method, Request
from get_lar import best_spline, make_pair
from restoring.steps import restore
from util import bright_level, mod_crop

FACTORS = ((2, 2, 2), (3, 3, 3), (4, 4, 4), (1, 1, 4))
SCAN_FACTORS = [(n, n, n) for n in (2, 3, 4)] + [(1, 1, n) for n in range(2, 9)]


@pytest.fixture(params=FACTORS, ids=[f"x{Method(factor=factor).tag}" for factor in FACTORS])
def loaded(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        asked = Request.of(factor=request.param)
        return load_filters(replace(asked, given=frozenset({"factor"})))[:2]


def test_they_were_learned_with_the_best_preset_on_public_domain_volumes(loaded):
    stages, method = loaded
    assert method.preset == "best"
    assert method.feature_space == "octahedral"
    assert len(stages) == method.stages
    about = json.loads((PRETRAINED / f"settings_{method.tag}.json").read_text())
    assert len(about["volumes"]) == 12 and all(name.startswith("sub-") for name in about["volumes"])
    assert "CC0" in (PRETRAINED / "README.md").read_text(encoding="utf-8")


def test_they_restore_a_piece_of_another_brain_better_than_the_best_spline(loaded):
    stages, method = loaded
    pair = make_pair(golden_figures(2).volume, method)
    errors = [
        np.mean((volume - pair.hr)[pair.mask] ** 2)
        for volume in (best_spline(pair), restore(pair, stages, method))
    ]
    assert 10 * np.log10(errors[0] / errors[1]) > 0.3, errors


def test_all_together_are_small():
    assert sum(path.stat().st_size for path in PRETRAINED.rglob("*.npy")) < 15e6


@pytest.mark.parametrize("factor", SCAN_FACTORS, ids=str)
def test_those_for_scans_serve_upscaling_and_bring_noisy_volumes_nearer_than_splines(
    factor, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("structure.weights_of", lambda *_: Weights())  # of so small a piece too
    stages, method, *_ = load_filters(Request.of(factor=factor, upscale=True))
    assert (method.preset, method.factor, len(stages)) == ("scan", factor, 2)
    hr = golden_figures(2).volume
    hr = mod_crop(np.pad(np.minimum(hr, bright_level(hr)) / bright_level(hr), 8), factor)
    operator = degradation_of(hr.shape, method)
    low = make_low(hr.astype(np.float32), operator, 0.03, np.random.default_rng(1))
    inside = hr > 0

    def error(volume):
        return np.mean(np.square(np.clip(volume, 0, 1) - hr)[inside])

    splines = [error(operator.spline(low, order)) for order in (1, 3, 5)]
    assert error(upscale(low, stages, method)) < 0.97 * min(splines)


def test_upscaling_a_thick_axis_anywhere_takes_the_filters_of_the_third(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for factor in ((4, 1, 1), (1, 4, 1), (1, 1, 4)):
        assert load_filters(Request.of(factor=factor, upscale=True))[1].factor == (1, 1, 4)


def test_a_clone_restores_and_upscales_without_training(tmp_path):
    """As a user does, from a folder with nothing in arrays/."""
    assert not (ROOT / "arrays" / "settings_2.json").exists() or pytest.skip(
        "arrays/ holds filters of its own"
    )
    write_nifti(
        tmp_path / "low.nii.gz",
        golden_figures(2).volume[::2, ::2, ::2].copy(),
        np.diag([1.5, 1.5, 1.5, 1]),
    )
    for options in (
        ["--result_dir", tmp_path / "result", "--no-report"],
        ["--upscale", "--output", tmp_path / "fine.nii.gz", "--no-report"],
    ):
        finished = run_command("test.py", "--test_dir", tmp_path / "low.nii.gz", *options)
        assert finished.returncode == 0, finished.stderr
        assert "those that come with the project" in finished.stdout
        assert "pretrained/README.md" in finished.stdout
    assert nib.load(tmp_path / "fine.nii.gz").shape == (44, 46, 46)


def test_other_settings_than_theirs_are_refused(tmp_path):
    write_nifti(tmp_path / "v.nii.gz", golden_figures(2).volume)
    finished = run_command(
        "test.py",
        "--test_dir",
        tmp_path / "v.nii.gz",
        "--lr_type",
        "average",
        "--result_dir",
        tmp_path / "r",
    )
    assert finished.returncode == 2
    assert "--lr_type" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
