"""Find the graphics cards that can be used, with CuPy; other files do not import CuPy."""
import contextlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpu.compute import gather_rows, patch_offsets
from machine.errors import UserError, first_line


class Card(NamedTuple):
    """A graphics card, or a substitute in tests."""

    xp: Any  # the array module
    to_host: Callable  # converts an array of xp to a NumPy array
    solve_triangular: Callable  # same arguments as in scipy.linalg
    free: Callable  # () -> bytes still free for arrays
    release: Callable  # () -> None; gives back the memory of deleted arrays
    name: str
    # () -> a context in which the thread works on this card.
    use: Callable = contextlib.nullcontext


def find_cards(device, most=None):
    """The cards to use, and the reason for this choice; without cards, the CPU is used.

    Parameters
    ----------
    device : {"auto", "gpu"}
    most : int, optional
        Largest number of cards; by default all are used.

    Returns
    -------
    cards : list of Card
    why : str

    Raises
    ------
    UserError
        If `device` is "gpu" and there is no usable card.
    """
    try:
        # This check is quick, whereas importing CuPy takes half a second.
        if importlib.util.find_spec("cupy") is None:
            raise ImportError("CuPy is not installed, see requirements-gpu.txt")
        cards, left_out = cupy_cards(most)
    except Exception as fault:  # drivers and libraries raise their own exceptions
        if device == "gpu":
            raise UserError(f"argument --device: no GPU to work on: {first_line(fault)}; correct "
                            "this, or leave --device out") from fault
        return [], f"since there is no GPU to work on: {first_line(fault)}"
    names = [card.name for card in cards] + [f"left out: {fault}" for fault in left_out]
    return cards, "; ".join(names)


def cupy_cards(most=None):
    """The usable cards, in the order of CUDA_VISIBLE_DEVICES, and the faults of the others.

    Raises
    ------
    Exception
        If there is no usable card. The class is from CuPy, a driver or a compiler.
    """
    # With 1, products would round their factors to eleven bits. CuPy reads this variable once.
    os.environ["CUPY_TF32"] = "0"
    # Imported here: CuPy is optional, and its import takes half a second.
    import cupy

    if not cupy.is_available():
        raise OSError(f"CuPy {cupy.__version__} finds no NVIDIA GPU with a driver for its version "
                      "of CUDA")
    cards, faults = [], []
    for number in range(cupy.cuda.runtime.getDeviceCount()):
        if len(cards) == most:
            break
        try:
            cards.append(cupy_card(cupy, number))
        except Exception as fault:
            faults.append(fault)
    if not cards:
        raise faults[0]
    return cards, [first_line(fault) for fault in faults]


def cupy_card(cupy, number):
    """One card, after a small test computation."""
    # Imported here, like CuPy itself.
    from cupyx.scipy.linalg import solve_triangular

    device, pool = cupy.cuda.Device(number), cupy.get_default_memory_pool()
    name = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
    free, total = device.mem_info
    card = Card(cupy, cupy.asnumpy, solve_triangular,
                lambda: device.mem_info[0] + pool.free_bytes(), pool.free_all_blocks,
                f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, CuPy {cupy.__version__}",
                lambda: cupy.cuda.Device(number))  # a new Device each time, for each thread its own
    try:
        with card.use():
            try_out(card)
    except Exception as fault:
        raise OSError(f"{name}: {first_line(fault)}") from fault
    return card


def try_out(card):
    """Call each library once, and raise OSError if a result is wrong.

    A missing library is thus found at the start, not after an hour. The memory that libraries take
    then no longer counts as free.
    """
    xp = card.xp
    cube, at = xp.asarray(np.ones((3, 3, 3), np.float32)), xp.asarray(np.array([13], np.int32))
    offsets = xp.asarray(patch_offsets(cube.shape, 3))
    rows = gather_rows(xp, cube.ravel(), cube.ravel(), at, offsets, False)
    sums = xp.zeros(rows.shape[1]**2)
    sums += (rows.T @ rows).ravel()
    factor = xp.linalg.cholesky(xp.asarray(4 * np.eye(2)[None]))
    half = card.to_host(card.solve_triangular(factor[0], factor[0, 0], trans="T", lower=True,
                                              check_finite=False))
    if not np.allclose(half, [1, 0]) or not np.allclose(card.to_host(sums), 1):
        raise OSError("it computes wrong results; check its driver")
