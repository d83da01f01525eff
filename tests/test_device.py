"""gpu/cards.py and engine.py: which card is chosen, and what is said of it.

Tests marked `gpu` run on a card, where there is one.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
import types
from importlib.machinery import ModuleSpec

import nibabel as nib
import numpy as np
import pytest
import synthetic
from conftest import ROOT, assert_one_line, load_script, run_command
from strict_card import CARDS, CURRENT, NAMES, current, strict_card

import structure
from engine import CPU, choose_engine
from filter_constant import Settings, command_line
from gpu import cards as device
from gpu.cards import find_cards, try_out
from gpu.compute import Stream
from machine import memory
from machine.errors import UserError
from structure import structure_of

QUICK = [
    "--filter_len",
    "5",
    "--grad_len",
    "5",
    "--q_angle_p",
    "2",
    "--q_angle_t",
    "2",
    "--sample_rate",
    "1",
    "--quiet",
]


# ---- the commands


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    for number in range(3):
        synthetic.save(folder / "train" / f"v{number}.nii.gz", synthetic.brain(number))
    synthetic.save(folder / "test" / "t.nii.gz", synthetic.brain(9))
    return folder


def learn(folders, arrays, *options, train="train"):
    arguments = [*QUICK, "--train_dir", folders / train, "--arrays_dir", arrays, *options]
    return load_script("train").main(*command_line("train", list(map(str, arguments))))


@pytest.fixture(scope="module")
def on_cpu(folders):
    assert learn(folders, folders / "cpu", "--device", "cpu") == 0
    return np.load(folders / "cpu" / "h_2.npy")


@CARDS
@pytest.mark.parametrize(
    "options",
    [(), ("--max_memory", "passes"), ("--checkpoint_minutes", "0")],
    ids=["one pass", "two passes", "saved after each volume"],
)
def test_training_on_a_card_learns_the_filters_of_the_cpu(
    make_card, options, folders, on_cpu, tmp_path, monkeypatch
):
    card = make_card()
    if "passes" in options:
        options = ()
        monkeypatch.setattr(
            structure, "plan_passes", lambda *_: memory.Plan([range(0, 20), range(20, 36)], 1, 1)
        )
        for user in ("learning", "disk.checkpoint"):
            monkeypatch.setattr(f"{user}.buckets_per_file", lambda *_: 20)
    monkeypatch.setattr(device, "find_cards", lambda *_: ([card], card.name))
    assert learn(folders, tmp_path / "arrays", *options) == 0
    # Sums are equal to 1e-6; Q of a smooth volume passes that on to its filters some ten times
    # larger.
    np.testing.assert_allclose(
        np.load(tmp_path / "arrays" / "h_2.npy"), on_cpu, rtol=0, atol=1e-4 * np.abs(on_cpu).max()
    )


@pytest.mark.parametrize("way", ["one pass", "two passes", "saved after each volume"])
def test_training_on_several_cards_learns_the_filters_of_the_cpu(
    way, folders, on_cpu, tmp_path, monkeypatch, capsys
):
    if way == "two passes":
        monkeypatch.setattr(
            structure, "plan_passes", lambda *_: memory.Plan([range(0, 20), range(20, 36)], 1, 1)
        )
        for user in ("learning", "disk.checkpoint"):
            monkeypatch.setattr(f"{user}.buckets_per_file", lambda *_: 20)
    monkeypatch.setattr(
        device, "find_cards", lambda *_: ([strict_card(number=n) for n in range(2)], "stand-ins")
    )
    assert (
        learn(
            folders, tmp_path, *["--checkpoint_minutes", "0"] * (way == "saved after each volume")
        )
        == 0
    )
    assert "Device: 2 GPUs, stand-ins" in capsys.readouterr().out
    np.testing.assert_allclose(
        np.load(tmp_path / "h_2.npy"), on_cpu, rtol=0, atol=1e-4 * np.abs(on_cpu).max()
    )


def test_a_training_on_several_cards_that_is_stopped_goes_on_where_it_was(
    tmp_path, monkeypatch, capsys
):
    for number in range(6):
        synthetic.save(tmp_path / "train" / f"v{number}.nii.gz", synthetic.brain(number))
    assert learn(tmp_path, tmp_path / "cpu", "--device", "cpu") == 0
    expected = np.load(tmp_path / "cpu" / "h_2.npy")
    monkeypatch.setattr(
        device, "find_cards", lambda *_: ([strict_card(number=n) for n in range(2)], "stand-ins")
    )
    add_on, begun = Stream.add, []

    def stopped_amid(self, *arguments):
        begun.append(self)
        if len(begun) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # until the main thread has noted it
        return add_on(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "add", stopped_amid)
        assert learn(tmp_path, tmp_path / "cards") == 130
    finished = len(begun)
    assert (
        1 <= finished < 6
        and "Stopped; " in capsys.readouterr().out
        and not (tmp_path / "cards" / "h_2.npy").exists()
    )
    assert learn(tmp_path, tmp_path / "cards") == 0
    assert f"{finished} of 6 volumes are summed" in capsys.readouterr().out
    np.testing.assert_allclose(
        np.load(tmp_path / "cards" / "h_2.npy"),
        expected,
        rtol=0,
        atol=1e-4 * np.abs(expected).max(),
    )


def test_a_card_that_fails_amid_a_training_leaves_no_half_volume_behind(
    folders, on_cpu, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        device, "find_cards", lambda *_: ([strict_card(number=n) for n in range(2)], "stand-ins")
    )
    add_on, begun = Stream.add, []

    def failing(self, *arguments):
        begun.append(self)
        added = add_on(self, *arguments)
        if len(begun) == 3:
            raise UserError("the card failed")
        return added

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "add", failing)
        with pytest.raises(UserError, match="the card failed"):
            learn(folders, tmp_path, "--checkpoint_minutes", "0")
    assert learn(folders, tmp_path) == 0
    np.testing.assert_allclose(
        np.load(tmp_path / "h_2.npy"), on_cpu, rtol=0, atol=1e-4 * np.abs(on_cpu).max()
    )


def test_a_bad_volume_read_ahead_costs_one_line_in_its_turn(
    folders, on_cpu, tmp_path, monkeypatch, capsys
):
    for number in range(3):
        synthetic.save(tmp_path / "train" / f"v{number}.nii.gz", synthetic.brain(number))
    (tmp_path / "train" / "v1b.nii.gz").write_bytes(b"no volume")
    monkeypatch.setattr(device, "find_cards", lambda *_: ([strict_card()], "stand-in"))
    assert learn(tmp_path, tmp_path / "arrays") == 1
    assert "v1b.nii.gz" in capsys.readouterr().err
    np.testing.assert_allclose(
        np.load(tmp_path / "arrays" / "h_2.npy"), on_cpu, rtol=0, atol=1e-4 * np.abs(on_cpu).max()
    )


def test_a_training_begun_on_the_cpu_goes_on_on_a_card_and_back(folders, tmp_path, monkeypatch):
    learned = []
    for name, turns in (("cpu", [[]] * 3), ("both", [[], [strict_card()], []])):
        for volumes, cards in enumerate(turns, 1):
            monkeypatch.setattr(
                device, "find_cards", lambda *_, cards=cards: (cards, "chosen by the test")
            )
            assert learn(folders, tmp_path / name, "--train_file_max", volumes) == 0
        learned.append(np.load(tmp_path / name / "h_2.npy"))
    np.testing.assert_allclose(*learned, rtol=0, atol=1e-4 * np.abs(learned[0]).max())


@pytest.mark.parametrize("options", [("--dtype", "float32"), ("--upscale",)])
def test_both_ways_of_restoring_use_the_card(options, folders, on_cpu, tmp_path, monkeypatch):
    results = []
    for name, cards in (("cpu", []), ("card", [strict_card()])):
        monkeypatch.setattr(device, "find_cards", lambda *_, cards=cards, name=name: (cards, name))
        target = tmp_path / f"{name}.nii.gz"
        arguments = [
            "--test_dir",
            folders / "test",
            "--arrays_dir",
            folders / "cpu",
            "--output",
            target,
            "--no-report",
            *options,
        ]
        assert load_script("test").main(*command_line("test", list(map(str, arguments)))) == 0
        results.append(nib.load(target).get_fdata())
        assert not cards or cards[0].xp.memory.peak > 1000
    np.testing.assert_allclose(*results, rtol=0, atol=1e-5 * results[0].max())


# ---- the choice


def test_the_device_is_said_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert isinstance(choose_engine(Settings()), CPU)
    assert isinstance(choose_engine(Settings(device="cpu")), CPU)
    settings = Settings(device="gpu", feature_space="octahedral")
    assert isinstance(choose_engine(settings, structure_of(settings).cpu_only), CPU)
    first, second, third = capsys.readouterr().out.splitlines()
    assert (
        first.startswith("Device: CPU, ")
        and "CuPy is not installed" in first
        and "requirements-gpu.txt" in first
    )
    assert second == "Device: CPU, as --device asks for" and "octahedral" in third
    with pytest.raises(
        UserError, match="argument --device: no GPU to work on: CuPy is not installed"
    ):
        choose_engine(Settings(device="gpu"))


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_a_gpu_asked_for_where_there_is_none_is_one_line_and_status_2(folders, on_cpu, tmp_path):
    assert_one_line(
        run_command(
            "train.py",
            "--device",
            "gpu",
            "--train_dir",
            folders / "train",
            "--arrays_dir",
            tmp_path,
        ),
        "--device",
        "CuPy is not installed",
    )
    assert_one_line(
        run_command(
            "test.py",
            "--device",
            "gpu",
            "--test_dir",
            folders / "test",
            "--arrays_dir",
            folders / "cpu",
            "--result_dir",
            tmp_path,
        ),
        "--device",
        "CuPy is not installed",
    )


def fake_cupy(monkeypatch, available=True, fault=None, broken=(), cards=1):
    """CuPy and cupyx over stand-ins, for what `cupy_cards` asks of them.

    The cards of the numbers in `broken` compute nonsense.
    """
    there = [strict_card(8 << 30, number=number) for number in range(cards)]

    class Device:
        mem_info = 7 << 30, 8 << 30

        def __init__(self, number):
            self.id, self.inside = number, current(number)

        def __enter__(self):
            return self.inside.__enter__()

        def __exit__(self, *fault):
            return self.inside.__exit__(*fault)

    class Pool:
        free_bytes, free_all_blocks = staticmethod(lambda: 1 << 30), staticmethod(lambda: None)

    class Cupy(types.ModuleType):
        def __getattr__(self, name):  # what works on the current card
            if name.startswith("__"):
                raise AttributeError(name)
            return getattr(there[CURRENT.card].xp, name)

    def is_available():
        if fault:
            raise fault
        return available

    def solve_triangular(factor, vector, **options):
        if CURRENT.card in broken:
            return there[CURRENT.card].xp.zeros(2)
        return there[CURRENT.card].solve_triangular(factor, vector, **options)

    cupy, cupyx, scipy, linalg = (
        Cupy("cupy"),
        *(types.ModuleType(f"cupyx{name}") for name in ("", ".scipy", ".scipy.linalg")),
    )
    cupy.__spec__, cupy.__version__, linalg.solve_triangular = (
        ModuleSpec("cupy", None),
        "14.2.0",
        solve_triangular,
    )
    assert {"cupy.is_available", "cupy.get_default_memory_pool", "cupy.asnumpy"} <= set(NAMES)
    cupy.is_available, cupy.get_default_memory_pool = is_available, Pool
    cupy.asnumpy = lambda array: there[CURRENT.card].xp.asnumpy(array)
    cupy.cuda = types.SimpleNamespace(
        Device=Device,
        runtime=types.SimpleNamespace(
            getDeviceCount=lambda: cards,
            getDeviceProperties=lambda number: {"name": b"NVIDIA Made Up"},
        ),
    )
    for module in (cupy, cupyx, scipy, linalg):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_a_card_that_cupy_finds_is_taken(monkeypatch, capsys):
    fake_cupy(monkeypatch)
    monkeypatch.setenv("CUPY_TF32", "1")
    engine = choose_engine(Settings())
    card = engine.streams[0].card
    assert (
        capsys.readouterr().out == "Device: GPU, NVIDIA Made Up, 7.5 of 8.6 GB free, CuPy 14.2.0\n"
    )
    assert card.free() == 8 << 30 and device.os.environ["CUPY_TF32"] == "0"
    assert isinstance(choose_engine(Settings(device="cpu")), CPU)


def test_all_cards_are_taken_but_those_that_fail_their_trial_and_no_more_than_asked_for(
    monkeypatch, capsys
):
    fake_cupy(monkeypatch, cards=3, broken=[1])
    cards = [stream.card for stream in choose_engine(Settings()).streams]
    out = capsys.readouterr().out
    assert (
        len(cards) == 2
        and out.startswith("Device: 2 GPUs, NVIDIA Made Up")
        and out.count("\n") == 1
    )
    assert "left out: NVIDIA Made Up: it computes nonsense" in out
    for card, number in zip(cards, (0, 2), strict=True):
        with card.use():
            assert CURRENT.card == number
    assert len(find_cards("auto", most=1)[0]) == 1
    fake_cupy(monkeypatch, cards=2, broken=[0])
    (card,), why = find_cards("auto", most=1)
    assert "left out" in why
    with card.use():
        assert CURRENT.card == 1


@pytest.mark.parametrize(
    "given", [{"available": False}, {"fault": RuntimeError("libnvrtc.so.12: not found\nmore")}]
)
def test_a_cupy_without_a_card_or_half_installed_leaves_the_cpu(monkeypatch, given):
    fake_cupy(monkeypatch, **given)
    cards, why = find_cards("auto")
    assert cards == [] and "\n" not in why and ("finds no NVIDIA GPU" in why or "libnvrtc" in why)
    with pytest.raises(UserError, match="finds no NVIDIA GPU|libnvrtc"):
        find_cards("gpu")


def test_a_card_that_computes_nonsense_is_not_taken(monkeypatch):
    fake_cupy(monkeypatch, broken=[0])
    cards, why = find_cards("auto")
    assert cards == [] and "nonsense" in why


@CARDS
def test_a_good_card_passes_its_trial(make_card):
    try_out(make_card())


# ---- the page


def test_the_roofline_on_the_page_is_what_its_script_prints():
    printed = subprocess.run(
        [sys.executable, "docs/roofline.py"], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout
    assert printed in (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
