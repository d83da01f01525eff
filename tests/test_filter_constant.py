"""filter_constant.py: the options, their limits and defaults, and what --help says."""

import dataclasses
import inspect
import re

import pytest
from conftest import assert_one_line, run_command

import filter_constant
from filter_constant import (
    FEATURE_TYPES,
    GROUPS,
    LR_TYPES,
    NOT_FOR,
    ONLY_OCTAHEDRAL,
    ONLY_SPHERICAL,
    SOLVERS,
    Settings,
    command_line,
    run,
)
from machine.errors import UserError

COMMANDS = ("train", "test")


def options_of(command):
    return [
        field
        for field in dataclasses.fields(Settings)
        if field.metadata["group"] in GROUPS[command] and field.name not in NOT_FOR[command]
    ]


def refused(capsys, command, *arguments):
    """The one line that a command answers with; the exit status is 2."""
    with pytest.raises(SystemExit) as end:
        command_line(command, [str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert len(err.splitlines()) == 1 and err.startswith(f"{command}.py: error: ")
    return err


def help_of(capsys, command):
    with pytest.raises(SystemExit) as end:
        command_line(command, ["--help"])
    assert end.value.code == 0
    return re.sub(r"\s+", " ", capsys.readouterr().out)


# ---- defaults


def test_defaults_are_the_published_ones():
    settings, given = command_line("train", [])
    assert not given
    assert (settings.factor, settings.filter_len, settings.grad_len) == ((2, 2, 2), 11, 9)
    assert (settings.q_angle_p, settings.q_angle_t, settings.lr_type) == (8, 8, "interpolation")
    assert (settings.feature_type, settings.sample_rate, settings.quantization_rate) == (
        "lambda1_coh2",
        3,
        5,
    )
    assert (settings.sharpen, settings.blend_threshold) == (False, None)
    assert (settings.buckets, settings.taps, settings.margin, settings.tag) == (576, 1331, 5, "2")


def test_options_keep_their_published_names():
    published = {
        "q_angle_t",
        "q_angle_p",
        "filter_len",
        "grad_len",
        "factor",
        "train_div",
        "sharpen",
        "blend_threshold",
        "lr_type",
        "feature_type",
        "train_file_max",
    }
    assert published <= {field.name for command in COMMANDS for field in options_of(command)}


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().factor = (3, 3, 3)


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
    settings, _ = command_line("train", arguments)
    assert (settings.buckets, settings.taps, settings.margin) == (buckets, taps, margin)


# ---- what is understood


def test_what_was_given_is_told_apart_from_defaults():
    settings, given = command_line("train", ["--factor", "2", "--seed", "7"])
    assert given == {"factor", "seed"} and settings.seed == 7


@pytest.mark.parametrize(
    "arguments, factor, tag",
    [
        (["3"], (3, 3, 3), "3"),
        (["4", "4", "4"], (4, 4, 4), "4"),
        (["1", "1", "4"], (1, 1, 4), "1x1x4"),
    ],
)
def test_factor_is_one_number_or_one_per_axis(arguments, factor, tag):
    settings, _ = command_line("train", ["--factor", *arguments])
    assert (settings.factor, settings.tag) == (factor, tag)


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
    assert command_line("train", arguments)[0].sharpen is expected


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
    assert command_line("test", arguments)[0].blend_threshold == expected


@pytest.mark.parametrize(
    "name, choices", [("lr_type", LR_TYPES), ("feature_type", FEATURE_TYPES), ("solver", SOLVERS)]
)
def test_every_choice_is_taken(name, choices):
    for choice in choices:
        assert getattr(command_line("train", [f"--{name}", choice])[0], name) == choice


@pytest.mark.parametrize("command", COMMANDS)
def test_ends_of_every_range_are_taken_and_what_is_beyond_refused(capsys, command):
    checked = 0
    for field in options_of(command):
        for limit, beyond in (("low", -1), ("high", 1)):
            if limit not in field.metadata:
                continue
            end = field.metadata[limit]
            outside = 2 * end if isinstance(field.default, float) and beyond > 0 else end + beyond
            best = (
                ["--preset", "best"] if command == "train" and field.name in ONLY_OCTAHEDRAL else []
            )
            if field.name != "factor" or end > 1:  # a factor of 1 on all axes is no task
                assert field.name in command_line(command, [f"--{field.name}", str(end), *best])[1]
            assert f"--{field.name}" in refused(capsys, command, f"--{field.name}", outside)
            checked += 1
    assert checked >= 10


def test_a_preset_sets_several_options_and_others_change_it():
    paper, best = Settings(), command_line("train", ["--preset", "best"])[0]
    assert command_line("train", ["--preset", "paper"])[0] == paper and (
        paper.feature_space,
        paper.ridge,
    ) == ("spherical", 10)
    assert (best.feature_space, best.start, best.filter_len, best.ridge) == (
        "octahedral",
        "projected",
        7,
        None,
    )
    assert (
        command_line("train", ["--preset", "best", "--filter_len", "5", "--ridge", "300"])[0].ridge
        == 300
    )
    assert (
        command_line("train", ["--ridge", "auto", "--feature_space", "octahedral"])[0].ridge is None
    )


@pytest.mark.parametrize("name", ONLY_SPHERICAL + ("solver",))
def test_options_of_the_spherical_space_are_refused_with_the_best_preset(capsys, name):
    value = {"feature_type": "trace_fa", "solver": "cg"}.get(name, 5)
    assert f"--{name}" in refused(capsys, "train", "--preset", "best", f"--{name}", value)


# ---- what is refused


@pytest.mark.parametrize("name", ["filter_len", "grad_len"])
def test_even_lengths_are_refused(capsys, name):
    assert "odd" in refused(capsys, "train", f"--{name}", 8)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["--nonsense", "1"],
        ["stray.nii.gz"],
        ["--fact", "2"],
        ["--Factor", "2"],
        ["--factor"],
        ["--factor", "2", "3"],
        ["--factor", "2", "2", "2", "2"],
        ["--factor", "1"],
        ["--factor", "1", "1", "1"],
        ["--factor", "2.5"],
        ["--factor", "two"],
        ["--factor", "9"],
        ["--factor", "-2"],
        ["--lr_type", "spline"],
        ["--feature_type", "lambda2_coh2"],
        ["--solver", "lsqr"],
        ["--sharpen", "perhaps"],
        ["--ridge", "nan"],
        ["--ridge", "inf"],
        ["--ridge", "0"],
        ["--ridge", "much"],
        ["--seed", "-1"],
        ["--sample_rate", "0"],
        ["--sample_rate", "1.5"],
        ["--train_div", "0"],
        ["--train_dir"],
        ["--blend_threshold", "10"],
        ["--ridge", "5", "--solver", "cg"],
        ["--ridge", "auto"],
        ["--stages", "2"],
        ["--leaves", "64"],
        ["--splits", "quantiles"],
        ["--preset", "best", "--leaves", "64", "--splits", "quantiles"],
        ["--preset", "good"],
        ["--back_projections", "2"],
    ],
    ids=" ".join,
)
def test_wrong_options_are_refused_in_one_line(capsys, arguments):
    refused(capsys, "train", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sharpen"],
        ["--seed", "1"],
        ["--train_dir", "x"],
        ["--blend_threshold", "27"],
        ["--blend_threshold", "-1"],
    ],
    ids=" ".join,
)
def test_options_that_restoring_does_not_use_are_refused(capsys, arguments):
    refused(capsys, "test", *arguments)


@pytest.mark.parametrize("script", ["train.py", "test.py"])
@pytest.mark.parametrize(
    "arguments",
    [["--filter_len", 8], ["--nonsense", 1], ["--factor", 99], ["--lr_type", "x"]],
    ids=str,
)
def test_script_answers_a_wrong_option_with_one_line_and_status_2(script, arguments):
    finished = run_command(script, *arguments)
    assert_one_line(finished, f"{script}: error:", arguments[0])
    assert not finished.stdout


# ---- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option_with_its_default(capsys, command):
    text = help_of(capsys, command)
    for field in options_of(command):
        # From this option's name to the next one's.
        entry = re.search(
            rf" --{field.name},? (?!\|)(?:--no-{field.name} )?(.*?)(?= --[a-z]|$)",
            text.split("method:", 1)[1],
        ).group(1)
        assert " ".join(field.metadata["help"].split())[:30] in entry
        if field.name == "factor":
            assert "(default: 2)" in entry
        elif "switch" in field.metadata:
            assert f"(default: {'yes' if field.default else 'no'})" in entry
        elif field.default not in (None, ""):  # those are off unless given
            assert f"(default: {field.default})" in entry
        for choice in field.metadata.get("choices", ()):
            assert choice in entry


@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_help_needs_neither_numpy_nor_numba(script):
    finished = run_command("-X", "importtime", script, "--help")
    imported = {
        line.rsplit("|", 1)[1].strip().split(".")[0]
        for line in finished.stderr.splitlines()
        if "|" in line
    }
    assert finished.returncode == 0 and "--factor" in finished.stdout
    assert "argparse" in imported and not imported & {
        "numpy",
        "numba",
        "scipy",
        "nibabel",
        "skimage",
        "tqdm",
    }


def test_settings_need_nothing_beyond_the_standard_library():
    assert "import numpy" not in inspect.getsource(filter_constant)


# ---- a user's mistake found later


def test_user_error_becomes_one_line_and_status_2(capsys, monkeypatch):
    def story(settings, given):
        raise UserError("x.nii.gz: is no volume; replace it")

    monkeypatch.setattr("sys.argv", ["train.py"])
    assert run("train", story) == 2
    assert capsys.readouterr().err == "train.py: error: x.nii.gz: is no volume; replace it\n"


def test_other_faults_are_not_hidden(monkeypatch):
    def story(settings, given):
        raise ZeroDivisionError

    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(ZeroDivisionError):
        run("train", story)
