"""train.py and test.py on cards: with NumPy in CuPy's place and with a strict stand-in.

Tests marked `gpu` run on a card, where there is one.
"""

import importlib.util
import os
import signal
from threading import Event, main_thread

import nibabel as nib
import numpy as np
import pytest
import synthetic
from conftest import assert_one_line, load_script, run_command
from strict_card import CARDS, strict_card

import structure
from disk.interrupt import Stop
from gpu import cards as device
from gpu.compute import Stream
from machine import memory
from machine.errors import UserError
from options.command_line import command_line

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


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    for number in range(3):
        synthetic.save(folder / "train" / f"v{number}.nii.gz", synthetic.brain(number))
    synthetic.save(folder / "test" / "t.nii.gz", synthetic.brain(9))
    return folder


def learn(folders, arrays, *options, train="train"):
    arguments = [*QUICK, "--train_dir", folders / train, "--arrays_dir", arrays, *options]
    return load_script("train").main(command_line("train", list(map(str, arguments))))


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
        for user in ("learning.steps", "learning.checkpoint"):
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
        for user in ("learning.steps", "learning.checkpoint"):
            monkeypatch.setattr(f"{user}.buckets_per_file", lambda *_: 20)
    monkeypatch.setattr(
        device, "find_cards", lambda *_: ([strict_card(number=n) for n in range(2)], "stand-ins")
    )
    options = ["--checkpoint_minutes", "0"] if way == "saved after each volume" else []
    assert learn(folders, tmp_path, *options) == 0
    assert "Device: 2 GPUs, stand-ins" in capsys.readouterr().out
    np.testing.assert_allclose(
        np.load(tmp_path / "h_2.npy"), on_cpu, rtol=0, atol=1e-4 * np.abs(on_cpu).max()
    )


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
def test_a_training_on_several_cards_that_is_stopped_goes_on_where_it_was(
    tmp_path, monkeypatch, capsys, request
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
            # Python notes a signal in the main thread, and misses one that comes just before this
            # thread begins to wait; another signal wakes it.
            while not noted.wait(0.1):
                signal.pthread_kill(main_thread().ident, signal.SIGUSR1)
        return add_on(self, *arguments)

    note, noted = Stop._note, Event()

    def noting(self, *arguments):
        note(self, *arguments)
        noted.set()

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "_note", noting)
        patch.setattr(Stream, "add", stopped_amid)
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        request.addfinalizer(lambda: signal.signal(signal.SIGUSR1, before))
        assert learn(tmp_path, tmp_path / "cards") == 130
    finished = len(begun)
    assert 1 <= finished < 6
    assert "Stopped; " in capsys.readouterr().out
    assert not (tmp_path / "cards" / "h_2.npy").exists()
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
        assert load_script("test").main(command_line("test", list(map(str, arguments)))) == 0
        results.append(nib.load(target).get_fdata())
        assert not cards or cards[0].xp.memory.peak > 1000
    np.testing.assert_allclose(*results, rtol=0, atol=1e-5 * results[0].max())


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
