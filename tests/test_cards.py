"""gpu/cards.py and engine.py: which cards are taken, and what is said of them.

Tests marked `gpu` run on a card, where there is one.
"""

import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec

import pytest
from strict_card import CARDS, CURRENT, NAMES, current, strict_card

from engine import CPU, choose_engine
from filter_constant import Method
from gpu import cards as device
from gpu.cards import find_cards, try_out
from machine.errors import UserError
from structure import structure_of


def test_the_device_is_said_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert isinstance(choose_engine("auto"), CPU)
    assert isinstance(choose_engine("cpu"), CPU)
    method = Method(feature_space="octahedral")
    assert isinstance(choose_engine("gpu", structure_of(method).cpu_only), CPU)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("Device: CPU, ")
    assert "CuPy is not installed" in first
    assert "requirements-gpu.txt" in first
    assert second == "Device: CPU, requested by --device" and "octahedral" in third
    with pytest.raises(
        UserError, match="argument --device: no GPU to work on: CuPy is not installed"
    ):
        choose_engine("gpu")


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

    cupy = Cupy("cupy")
    cupyx, scipy, linalg = (
        types.ModuleType(f"cupyx{name}") for name in ("", ".scipy", ".scipy.linalg")
    )
    cupy.__spec__, cupy.__version__ = ModuleSpec("cupy", None), "14.2.0"
    linalg.solve_triangular = solve_triangular
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
    engine = choose_engine("auto")
    card = engine.streams[0].card
    out = capsys.readouterr().out
    assert out == "Device: GPU, NVIDIA Made Up, 7.5 of 8.6 GB free, CuPy 14.2.0\n"
    assert card.free() == 8 << 30 and device.os.environ["CUPY_TF32"] == "0"
    assert isinstance(choose_engine("cpu"), CPU)


def test_all_cards_are_taken_but_those_that_fail_their_trial_and_no_more_than_asked_for(
    monkeypatch, capsys
):
    fake_cupy(monkeypatch, cards=3, broken=[1])
    cards = [stream.card for stream in choose_engine("auto").streams]
    out = capsys.readouterr().out
    assert len(cards) == 2
    assert out.startswith("Device: 2 GPUs, NVIDIA Made Up")
    assert out.count("\n") == 1
    assert "left out: NVIDIA Made Up: it computes wrong results" in out
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
    assert cards == [] and "wrong results" in why


@CARDS
def test_a_good_card_passes_its_trial(make_card):
    try_out(make_card())
