"""strict_card.py: the stand-in refuses what a graphics card would."""

import importlib.metadata
import importlib.util

import numpy as np
import pytest
from strict_card import NAMES, OutOfMemoryError, strict_card


def test_the_stand_in_refuses_what_a_card_would():
    xp, host = strict_card().xp, np.arange(4.0)
    array = xp.asarray(host)
    for wrong in (
        lambda: array + host,
        lambda: host + array,
        lambda: host[array],
        lambda: array[host.astype(int)],
        lambda: np.asarray(array),
        lambda: np.add(array, 1),
        lambda: float(array[0]),
        lambda: bool(array[0]),
        lambda: xp.take(array, np.array([1])),
        lambda: xp.linalg.cholesky(np.eye(2)),
        lambda: list(array),
        lambda: array.__setitem__(0, host[:1]),
        lambda: host.__setitem__(slice(None), array),
        lambda: xp.asnumpy(host),
        lambda: array.__iadd__(host),
    ):
        with pytest.raises((TypeError, ValueError, IndexError)):
            wrong()
    for absent in (
        lambda: xp.einsum_of_mine,
        lambda: xp.linalg.schur,
        lambda: array.no_such,
        lambda: array.tolist,
    ):
        with pytest.raises(AttributeError):
            absent()
    with pytest.raises(AssertionError):
        xp.take(array, xp.asarray([0]), mode="clip")  # NumPy has that argument, CuPy has not
    np.testing.assert_array_equal(xp.asnumpy((array * 2 + array)[1:]), host[1:] * 3)


def test_the_stand_in_counts_its_memory():
    card = strict_card(800)
    array = card.xp.zeros(50)
    view = array[10:]
    with pytest.raises(OutOfMemoryError):
        card.xp.zeros(51)
    del array
    assert card.free() == 400
    del view
    assert card.free() == 800


def test_the_stand_in_keeps_cards_apart():
    first, second = strict_card(number=0), strict_card(number=1)
    array = first.xp.asarray(np.arange(3.0))
    with second.use():
        other = second.xp.asarray(np.arange(3.0))
        for wrong in (
            lambda: array + 1,
            lambda: other + array,
            lambda: first.xp.zeros(3),
            lambda: first.to_host(array),
            lambda: second.xp.take(array, other),
            lambda: other.__setitem__(slice(None), array),
        ):
            with pytest.raises(RuntimeError, match="card 0"):
                wrong()
    for wrong in (lambda: other + 1, lambda: second.to_host(other), lambda: second.xp.zeros(3)):
        with pytest.raises(RuntimeError, match="card 1"):
            wrong()


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_an_installed_cupy_has_the_names_that_the_stand_in_allows():
    import cupy

    if not importlib.metadata.version(
        next(iter(importlib.metadata.packages_distributions()["cupy"]))
    ).startswith("14."):
        pytest.skip("another major version")
    for name in NAMES:
        holder, _, last = name.removeprefix("cupy.").rpartition(".")
        if not name.startswith("cupyx"):
            assert hasattr(
                {"": cupy, "linalg": cupy.linalg, "ndarray": cupy.ndarray}[holder], last
            ), name
