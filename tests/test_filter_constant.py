"""filter_constant.py: the options, their limits and defaults, and what --help says."""

import dataclasses
import inspect
import re

import pytest
from conftest import refused, run_process

import filter_constant
from filter_constant import (
    FEATURE_TYPES,
    LR_TYPES,
    ONLY_OCTAHEDRAL,
    ONLY_SCAN,
    SOLVERS,
    Method,
    Request,
)
from machine.option_fields import flag_of, in_words
from options.command_line import command_line, options_of

COMMANDS = ("train", "test")


def help_of(capsys, command):
    with pytest.raises(SystemExit) as end:
        command_line(command, ["--help"])
    assert end.value.code == 0
    return re.sub(r"\s+", " ", capsys.readouterr().out)


# ---- defaults


def test_defaults_are_the_published_ones():
    request = command_line("train", [])
    assert not request.given
    method = request.method
    assert (method.factor, method.filter_len, method.grad_len) == ((2, 2, 2), 11, 9)
    assert (method.q_angle_p, method.q_angle_t, method.lr_type) == (8, 8, "interpolation")
    assert method.feature_type == "lambda1_coh2"
    assert (method.sample_rate, method.quantization_rate) == (3, 5)
    assert (method.sharpen, request.blend_threshold) == (False, None)
    assert (method.buckets, method.taps, method.margin, method.tag) == (576, 1331, 5, "2")


def test_options_keep_their_published_names():
    published = {
        "q_angle_t",
        "q_angle_p",
        "filter_len",
        "grad_len",
        "factor",
        "sharpen",
        "blend_threshold",
        "lr_type",
        "feature_type",
        "train_file_max",
    }
    assert published <= {field.name for command in COMMANDS for field in options_of(command)}


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Method().factor = (3, 3, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request().upscale = True


@pytest.mark.parametrize(
    "arguments, buckets, taps, margin",
    [
        (["--q_angle_p", "4", "--q_angle_t", "6"], 4 * 6 * 9, 1331, 5),
        (["--filter_len", "5"], 576, 125, 4),
        (["--filter_len", "5", "--grad_len", "3"], 576, 125, 2),
        (["--grad_len", "13"], 576, 1331, 6),
    ],
)
def test_sizes_follow_from_the_options(arguments, buckets, taps, margin):
    method = command_line("train", arguments).method
    assert (method.buckets, method.taps, method.margin) == (buckets, taps, margin)


# ---- what is understood


def test_what_was_given_is_told_apart_from_defaults():
    request = command_line("train", ["--factor", "2", "--seed", "7"])
    assert request.given == {"factor", "seed"} and request.method.seed == 7


@pytest.mark.parametrize(
    "arguments, factor, tag",
    [
        (["3"], (3, 3, 3), "3"),
        (["4", "4", "4"], (4, 4, 4), "4"),
        (["1", "1", "4"], (1, 1, 4), "1x1x4"),
    ],
)
def test_factor_is_one_number_or_one_per_axis(arguments, factor, tag):
    method = command_line("train", ["--factor", *arguments]).method
    assert (method.factor, method.tag) == (factor, tag)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], False),
        (["--sharpen"], True),
        (["--sharpen", "True"], True),
        (["--sharpen", "false"], False),
    ],
    ids=str,
)
def test_sharpen_may_stand_bare_or_with_a_truth_value(arguments, expected):
    assert command_line("train", arguments).method.sharpen is expected


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], None),
        (["--blend_threshold"], 10),
        (["--blend_threshold", "0"], 0),
        (["--blend_threshold", "26"], 26),
    ],
    ids=str,
)
def test_blend_is_off_unless_asked_for(arguments, expected):
    assert command_line("test", arguments).blend_threshold == expected


@pytest.mark.parametrize(
    "name, choices", [("lr_type", LR_TYPES), ("feature_type", FEATURE_TYPES), ("solver", SOLVERS)]
)
def test_every_choice_is_taken(name, choices):
    for choice in choices:
        preset = ["--preset", "scan"] if choice == "scan" else []
        assert command_line("train", [f"--{name}", choice, *preset]).value(name) == choice


def test_scan_is_for_upscaling_and_options_narrow_it(capsys):
    scan = command_line("train", ["--preset", "scan"]).method
    assert (scan.lr_type, scan.grid, scan.start) == ("scan", "edges", "quintic")
    assert scan.back_projections == 0
    assert scan.profile == ("box", "gap", "gauss", "sharp", "kspace", "hamming")
    assert scan.noise == 7
    narrow = ["--preset", "scan", "--profile", "box", "box", "gap", "--noise", "3"]
    narrow = command_line("train", narrow).method
    assert narrow.profile == ("box", "gap") and narrow.noise == 3
    for wrong in (
        ["--profile", "box"],
        ["--noise", "3"],
        ["--draws", "4"],
        ["--lr_type", "scan"],
        ["--preset", "scan", "--profile", "slab"],
        ["--preset", "scan", "--back_projections", "2"],
        ["--preset", "scan", "--start", "projected"], ["--preset", "scan", "--start", "quadratic"],
        ["--preset", "scan", "--grid", "centers"],
        ["--preset", "scan", "--sharpen"],
    ):
        refused(capsys, "train", *wrong)


def test_a_file_in_place_of_yes_or_no_is_told_its_option(capsys, tmp_path):
    (tmp_path / "scan.nii").write_text("")
    said = refused(capsys, "test", "--upscale", str(tmp_path / "scan.nii"))
    assert "neither True nor False; give folders and files with an option" in said
    assert "--test_dir" in said and "--test_dir" not in refused(capsys, "test", "--upscale", "no")


def test_an_evaluation_simulates_the_profile_that_it_is_given():
    def simulated(*words):
        return command_line("test", ["--preset", "scan", *words]).test_profile

    assert simulated() == ("box", "kspace")
    assert simulated("--profile", "hamming") == ("hamming",)
    assert simulated("--profile", "hamming", "--test_profile", "box") == ("box",)
    assert simulated("--profile", "kspace", "kspace", "box") == ("box", "kspace")


@pytest.mark.parametrize("command", COMMANDS)
def test_ends_of_every_range_are_taken_and_what_is_beyond_refused(capsys, command):
    checked = 0
    for field in options_of(command):
        for limit, beyond in (("low", -1), ("high", 1)):
            if limit not in field.metadata:
                continue
            end = field.metadata[limit]
            outside = 2 * end if isinstance(field.default, float) and beyond > 0 else end + beyond
            needs_best = command == "train" and field.name in ONLY_OCTAHEDRAL
            best = ["--preset", "best"] if needs_best else []
            if field.name in ONLY_SCAN:
                best = ["--preset", "scan"]
            if field.name == "voxel_size":
                best = ["--upscale"]
            if field.name != "factor" or end > 1:  # a factor of 1 on all axes is no task
                request = command_line(command, [f"--{field.name}", str(end), *best])
                assert field.name in request.given
            assert f"--{field.name}" in refused(capsys, command, f"--{field.name}", outside)
            checked += 1
    assert checked >= 10


def test_a_preset_sets_several_options_and_others_change_it():
    paper, best = Method(), command_line("train", ["--preset", "best"]).method
    assert command_line("train", ["--preset", "paper"]) == Request(paper, frozenset({"preset"}))
    assert (paper.feature_space, paper.ridge) == ("spherical", 10)
    assert (best.feature_space, best.start) == ("octahedral", "projected")
    assert (best.filter_len, best.ridge) == (7, None)
    for options, ridge in (
        (["--preset", "best", "--filter_len", "5", "--ridge", "300"], 300),
        (["--ridge", "auto", "--feature_space", "octahedral"], None),
    ):
        assert command_line("train", options).method.ridge == ridge


# ---- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option_with_its_default(capsys, command):
    with pytest.raises(SystemExit):
        command_line(command, ["--help"])
    # An entry begins with an indented name and ends before the next one.
    entries = [" ".join(entry.split())
               for entry in re.split(r"\n  (?=--)", capsys.readouterr().out)[1:]]
    for field in options_of(command):
        (entry,) = (entry for entry in entries if re.match(rf"--{flag_of(field)}\b", entry))
        assert " ".join(field.metadata["help"].split())[:30] in entry
        if field.default not in (None, "", ()):  # those are off unless given
            assert f"(default: {in_words(field.default)})" in entry
        for choice in field.metadata.get("choices", ()):
            assert choice in entry


@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_help_needs_neither_numpy_nor_numba(script):
    finished = run_process("-X", "importtime", script, "--help")
    imported = {
        line.rsplit("|", 1)[1].strip().split(".")[0]
        for line in finished.stderr.splitlines()
        if "|" in line
    }
    assert finished.returncode == 0 and "--factor" in finished.stdout
    assert "argparse" in imported
    assert not imported & {
        "numpy",
        "numba",
        "scipy",
        "nibabel",
        "skimage",
        "tqdm",
    }


def test_options_need_nothing_beyond_the_standard_library():
    assert "import numpy" not in inspect.getsource(filter_constant)
