"""filter_constant.py: options and settings that are refused, and how that is said."""

from dataclasses import asdict

import pytest
from conftest import assert_one_line, refused, run_process

from disk.saved_method import checked_settings
from filter_constant import ONLY_SPHERICAL, Method
from machine import errors
from machine.errors import UserError, first_line
from options.command_line import command_line, run


@pytest.mark.parametrize("name", ONLY_SPHERICAL + ("solver",))
def test_options_of_the_spherical_space_are_refused_with_the_best_preset(capsys, name):
    value = {"feature_type": "trace_fa", "solver": "cg"}.get(name, 5)
    assert f"--{name}" in refused(capsys, "train", "--preset", "best", f"--{name}", value)


@pytest.mark.parametrize("name", ["q_angle_p", "q_angle_t"])
def test_at_most_64_classes_of_an_angle_are_taken(capsys, name):
    for count in (1, 64):
        assert getattr(command_line("train", [f"--{name}", str(count)]).method, name) == count
    for count in (0, 65):
        assert f"--{name}" in refused(capsys, "train", f"--{name}", count)


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
        ["--train_dir"],
        ["--blend_threshold", "10"],
        ["--ridge", "5", "--solver", "cg"],
        ["--ridge", "auto"],
        ["--stages", "2"],
        ["--leaves", "64"],
        ["--preset", "good"],
        ["--back_projections", "2"],
        ["--lr_type", "kspace", "--grid", "edges"],
        ["--lr_type", "kspace", "--start", "quintic"],
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
        ["--suffix", "a\\b"],
        ["--no-adapt"],
    ],
    ids=" ".join,
)
def test_options_that_restoring_does_not_use_are_refused(capsys, arguments):
    refused(capsys, "test", *arguments)


@pytest.mark.parametrize(
    "command, arguments",
    [
        ("test", ["--preset", "scan", "--no-adapt"]),
        ("test", ["--upscale", "--no-adapt"]),
        ("test", ["--preset", "scan", "--test_noise", "0", "2.5", "--test_profile", "box", "gap"]),
        ("train", ["--grid", "centers"]),
        ("train", ["--lr_type", "kspace", "--start", "projected", "--preset", "best"]),
    ],
    ids=str,
)
def test_options_beside_those_that_are_refused_are_taken(command, arguments):
    request = command_line(command, arguments)
    assert {name.removeprefix("--").removeprefix("no-") for name in arguments
            if name.startswith("--")} <= request.given


@pytest.mark.parametrize("script", ["train.py", "test.py"])
@pytest.mark.parametrize(
    "arguments",
    [["--filter_len", 8], ["--nonsense", 1], ["--factor", 99], ["--lr_type", "x"]],
    ids=str,
)
def test_script_answers_a_wrong_option_with_one_line_and_status_2(script, arguments):
    finished = run_process(script, *arguments)
    assert_one_line(finished, f"{script}: error:", arguments[0])
    assert not finished.stdout


@pytest.mark.parametrize(
    "name, value",
    [
        ("factor", 2),
        ("factor", [2, 2]),
        ("factor", [2, 2, 99]),
        ("factor", [2, 2, True]),
        ("filter_len", 4),
        ("filter_len", 10**9),
        ("filter_len", "11"),
        ("filter_len", True),
        ("filter_len", 11.0),
        ("seed", -1),
        ("ridge", float("nan")),
        ("ridge", 1),
        ("solver", "magic"),
        ("sharpen", 0),
        ("lr_type", None),
        ("arrays_dir", "/"),
        ("__class__", "x"),
    ],
)
def test_settings_from_a_file_are_checked(name, value):
    good = asdict(Method())
    assert checked_settings(good) == good
    with pytest.raises(ValueError, match="arrays_dir|__class__" if name not in good else name):
        checked_settings({**good, name: value})
    for other in (None, [], "x", {}, {k: v for k, v in good.items() if k != "seed"}):
        with pytest.raises(ValueError):
            checked_settings(other)
    with pytest.raises(ValueError, match=r"unknown: a, b, c$"):
        checked_settings({**good, "d": 0, "c": 0, "b": 0, "a": 0})


# ---- a user's mistake found later


def test_user_error_becomes_one_line_and_status_2(capsys, monkeypatch):
    def story(request):
        raise UserError("x.nii.gz: is no volume; replace it")

    monkeypatch.setattr("sys.argv", ["train.py"])
    assert run("train", story) == 2
    assert capsys.readouterr().err == "train.py: error: x.nii.gz: is no volume; replace it\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_runs_print_nothing_to_standard_output(capsys, quiet):
    assert errors.run("train", lambda: print("a line") or 0, quiet) == 0
    assert capsys.readouterr().out == ("" if quiet else "a line\n")


def test_a_fault_without_a_message_is_named_by_its_class():
    assert first_line(ValueError("one line\nand another")) == "one line"
    assert first_line(ValueError()) == "ValueError"


def test_other_faults_are_not_hidden(monkeypatch):
    def story(request):
        raise ZeroDivisionError

    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(ZeroDivisionError):
        run("train", story)


@pytest.mark.parametrize("command", ["train", "test"])
@pytest.mark.parametrize("name", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["", ".", "./", "/"])
def test_a_pattern_that_names_no_file_is_refused(capsys, command, name, pattern):
    said = refused(capsys, command, f"--{name}", "*.nii", pattern)
    assert f"--{name}: '{pattern}' names no file; give a pattern" in said


@pytest.mark.parametrize("name", [".nii", "folder/.nii.gz", "x.txt", "folder/"])
def test_an_output_needs_a_name_and_an_ending(capsys, name):
    said = refused(capsys, "test", "--upscale", "--output", name)
    assert f"--output: '{name}' must end in .nii or .nii.gz, with a name before it" in said


def test_a_known_profile_needs_upscaling_or_filters_for_scans(capsys):
    said = refused(capsys, "test", "--profile", "box")
    assert "without --upscale; add it, or --preset scan" in said


def test_overwrite_has_no_effect_without_an_output(capsys):
    assert "--overwrite: has no effect without --output" in refused(
        capsys, "test", "--upscale", "--overwrite")
