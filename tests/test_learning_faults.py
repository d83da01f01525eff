"""Trainings whose files change meanwhile, whose checkpoint is damaged, or that are interrupted."""
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import one_line, run_here
from synthetic import QUICK, brain, save

import api
from disk.interrupt import only_training
from learning import steps
from options.arguments import options_of_learn

SMALL = {"filter_len": 5, "grad_len": 5, "q_angle_p": 3, "q_angle_t": 3, "preset": "paper"}
SHAPE = (18, 17, 16)


def words(folder, *more):
    return ["--train_dir", folder / "train", "--arrays_dir", folder / "arrays", *QUICK, *more]


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "train" / "v.nii", brain(0, SHAPE))
    return tmp_path


def test_a_volume_that_changes_between_its_digest_and_its_reading_is_left_out(
        folder, monkeypatch, capsys):
    save(folder / "train" / "w.nii", brain(1, SHAPE))
    pairs_of = steps.pairs_of

    def replaced(path, request):
        if path.name == "w.nii":
            save(path, brain(2, (20, 17, 16)))
        return pairs_of(path, request)

    def sampled(path, stages, request, volumes):  # reads the volume as it is
        (name, pair), = pairs_of(path, request)
        return [steps.structure_of(request.method).sample_features(pair, stages, name, volumes)]

    monkeypatch.setattr(steps, "sample_volume", sampled)
    monkeypatch.setattr(steps, "pairs_of", replaced)
    assert run_here("train", *words(folder)) == 1
    assert "w.nii: was changed while it was read" in capsys.readouterr().err
    about = json.loads((folder / "arrays" / "settings_2.json").read_text())
    assert about["volumes"] == ["v.nii"]


@pytest.mark.parametrize("preset", ["paper", "best"])
def test_a_digit_changed_in_the_classes_is_noticed(folder, capsys, preset):
    more = ["--leaves", 4, "--stages", 1] if preset == "best" else []
    options = [*words(folder)[:4], "--preset", preset, *(more or QUICK)]
    assert run_here("train", *options) == 0
    path, = (folder / "arrays").glob("QVF_2*/about.json")
    about = json.loads(path.read_text())
    name = next(name for name, values in about["classes"].items()
                if any(isinstance(value, float) for value in values))
    about["classes"][name][0] += 0.001
    path.write_text(json.dumps(about))
    assert "its checksum is wrong" in one_line(run_here, "train", *options)


def test_the_memory_is_measured_once(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(steps, "memory_budget", lambda most: asked.append(most) or 8e9)
    assert run_here("train", *words(folder)[:4], "--preset", "best", "--leaves", 4,
                    "--stages", 2) == 0
    assert len(asked) == 1


def test_for_volumes_with_too_few_voxels_rates_are_advised(folder):
    save(folder / "train" / "v.nii", brain(0, (6, 6, 6)))
    said = one_line(run_here, "train", *words(folder))
    assert "has samples to learn from" in said and "--quantization_rate 1" in said
    rates = ["--sample_rate", 1, "--quantization_rate", 1]
    assert run_here("train", *words(folder, *rates)) == 0


def test_for_volumes_smaller_than_a_patch_no_rates_are_advised(folder, capsys):
    save(folder / "train" / "v.nii", brain(0, (4, 4, 4)))
    said = one_line(run_here, "train", *words(folder))
    assert said.endswith("can be learned from; put volumes of brains in")
    assert "v.nii: a side of it, cut to a multiple" in capsys.readouterr().err


# ---- api.learn

def test_options_are_typed_as_on_the_command_line():
    assert options_of_learn({"noise": 5, "ridge": np.int64(100), "train_file_max": 0}) == {
        "noise": 5.0, "ridge": 100.0, "train_file_max": None}
    assert type(options_of_learn({"noise": 5})["noise"]) is float
    assert options_of_learn({"ridge": "auto"}) == {"ridge": None}
    with pytest.raises(ValueError, match="profile is empty"):
        options_of_learn({"profile": []})
    assert options_of_learn({"profile": ["box", "gap", "box"]}) == {"profile": ("box", "gap")}


def test_learn_takes_as_many_volumes_as_it_is_told(tmp_path):
    images = [brain(0, SHAPE), brain(1, SHAPE)]
    few = api.learn(images, train_file_max=1, folder=tmp_path / "few", **SMALL)
    alone = api.learn(images[:1], **SMALL)
    np.testing.assert_array_equal(few.stages[0].weights, alone.stages[0].weights)
    about = json.loads((tmp_path / "few" / "settings_2.json").read_text())
    assert about["volumes"] == ["volume_000.nii"]


def test_an_interrupted_learn_raises_and_keeps_the_filters(tmp_path, monkeypatch):
    api.learn([brain(0, SHAPE)], folder=tmp_path, **SMALL)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()}
    monkeypatch.setattr(api, "learn_stages", lambda *_: SimpleNamespace(signal=2, stages=[]))
    with pytest.raises(KeyboardInterrupt):
        api.learn([brain(1, SHAPE)], folder=tmp_path, **SMALL)
    assert before == {path.name: path.read_bytes()
                      for path in tmp_path.glob("*") if path.is_file()}


def test_learn_waits_for_no_other_training_in_its_folder(tmp_path):
    with only_training(tmp_path), pytest.raises(ValueError, match="a training runs here already"):
        api.learn([brain(0, SHAPE)], folder=tmp_path, **SMALL)


def test_filters_that_are_not_for_scans_are_refused_where_they_have_no_use():
    filters = api.learn([brain(0, SHAPE)], **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for argument in ({"profile": "box"}, {"adapt": True}):
            with pytest.raises(ValueError, match=f"{next(iter(argument))} has no effect"):
                api.upscale(brain(0, SHAPE), filters=filters, **argument)
        with pytest.raises(ValueError, match="were not learned for scans"):
            api.evaluate(brain(0, SHAPE), filters=filters)
