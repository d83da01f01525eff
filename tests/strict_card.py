"""A stand-in for CuPy that is stricter than CuPy: what would fail on a card fails without one.

Arrays of it do not mix with NumPy's, turn into nothing by themselves, and have no other functions,
methods and arguments than CuPy 14.2.0 has (cupy_14_2_0.txt: names and parameters, "*" where a
function does not tell its own). Its memory is counted, and can be as small as a test wants it.
Unlike CuPy it refuses indices out of bounds, which CuPy wraps. Of several cards, a thread may use
the current one alone, with arrays of that card: the first, unless it said otherwise.
"""

import contextlib
import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from gpu.cards import Card, cupy_cards

NAMES = dict(
    line.split(" ", 1)
    for line in Path(__file__).with_name("cupy_14_2_0.txt").read_text().splitlines()
)
# Of Python, and NumPy's float64, which is a float; CuPy takes all of NumPy's.
SCALARS = (bool, int, float)


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError, which is a MemoryError too."""


class Current(threading.local):
    """The number of the card that a thread works on."""

    card = 0


CURRENT = Current()


@contextlib.contextmanager
def current(number):
    before, CURRENT.card = CURRENT.card, number
    try:
        yield
    finally:
        CURRENT.card = before


class Memory:
    """Of one card: what is there, what is taken, and how often there was too little."""

    def __init__(self, size, number=0):
        self.size, self.number, self.used, self.peak, self.refused = size, number, 0, 0, 0
        self.lock = threading.RLock()  # an array may be collected while another is made

    def check(self):
        if self.number != CURRENT.card:
            raise RuntimeError(
                f"work for card {self.number} while this thread uses card {CURRENT.card}"
            )


class Piece:
    """Memory of one array and its views; given back with the last of them."""

    def __init__(self, memory, size):
        memory.check()
        with memory.lock:
            if memory.used + size > memory.size:
                memory.refused += 1
                raise OutOfMemoryError(f"{size} bytes more than {memory.size - memory.used}")
            self.memory, self.size = memory, size
            memory.used += size
            memory.peak = max(memory.peak, memory.used)

    def __del__(self):
        if hasattr(self, "memory"):
            with self.memory.lock:
                self.memory.used -= self.size


class Array:
    """An array on the card."""

    __array_ufunc__ = None  # NumPy's operators leave those with it to this class

    def __init__(self, data, memory, piece=None):
        self.data, self.memory, self.piece = data, memory, piece or Piece(memory, data.nbytes)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def refuse(self, *_):
        raise TypeError("a value on the card was read in main memory without to_host")

    __bool__ = __int__ = __float__ = __index__ = __iter__ = __contains__ = refuse

    def __len__(self):
        return len(self.data)

    def __getattr__(self, name):
        parameters = NAMES.get(f"cupy.ndarray.{name}")
        if parameters is None or name in (
            "get",
            "set",
            "tolist",
            "item",
            "tofile",
            "dump",
            "dumps",
            "tobytes",
        ):
            raise AttributeError(
                f"arrays of CuPy 14.2.0 have no .{name}, or it is no way to main memory here"
            )
        value = getattr(self.data, name)
        if isinstance(value, np.ndarray):  # .T
            return wrap(value, self.memory, self)
        return (
            checked(value, f"cupy.ndarray.{name}", parameters, self.memory, self)
            if callable(value)
            else value
        )

    def __getitem__(self, key):
        return wrap(self.data[index(key, self.memory)], self.memory, self)

    def __setitem__(self, key, value):
        self.data[index(key, self.memory)] = on_card(value, self.memory)


def wrap(result, memory, *operands):
    """The array on the card that holds a result; a view shares its operand's memory."""
    result = np.asarray(result)  # CuPy gives arrays of no axes where NumPy gives scalars
    shared = [
        operand
        for operand in operands
        if isinstance(operand, Array) and np.may_share_memory(result, operand.data)
    ]
    return Array(result, memory, shared[0].piece if shared else None)


def operator(name, in_place):
    def method(self, other):
        result = getattr(self.data, name)(on_card(other, self.memory))
        if result is NotImplemented:
            raise TypeError(f"{name} of {self.data.dtype} and {type(other).__name__}")
        return self if in_place else wrap(result, self.memory, self, other)

    return method


for plain in ("add", "sub", "mul", "matmul", "truediv"):
    for kind in ("", "r", "i"):
        setattr(Array, f"__{kind}{plain}__", operator(f"__{kind}{plain}__", kind == "i"))


def on_card(value, memory):
    """What an operation on a card may take: an array there, or a number of Python's."""
    memory.check()
    if isinstance(value, Array):
        if value.memory is not memory:
            raise RuntimeError(
                f"an array of card {value.memory.number} in an operation on card {memory.number}"
            )
        return value.data
    if isinstance(value, SCALARS):
        return value
    raise TypeError(f"Unsupported type {type(value)}: it must be brought to the card by asarray")


def index(key, memory):
    """What an array on the card may be indexed by."""

    def part(key):
        if key is None or key is Ellipsis or isinstance(key, (int, np.integer, slice)):
            return key
        return on_card(key, memory)

    return tuple(map(part, key)) if isinstance(key, tuple) else part(key)


def checked(function, name, parameters, memory, owner=None):
    """A function that takes arrays on the card only, and arguments that CuPy's has."""

    def call(*args, **named):
        memory.check()
        known = parameters.split()
        if parameters != "*":
            assert len(args) <= len(known) and set(named) <= set(known), (
                f"{name} of CuPy takes {parameters}"
            )
        for value in [*args, *named.values()]:
            if isinstance(value, (np.ndarray, np.generic)):
                raise TypeError(f"{name}: {type(value)} must be brought to the card by asarray")

        def bare(value):
            return on_card(value, memory) if isinstance(value, Array) else value

        result = function(*map(bare, args), **{key: bare(value) for key, value in named.items()})
        return (
            wrap(result, memory, owner, *args)
            if isinstance(result, (np.ndarray, np.generic))
            else result
        )

    return call


class Module:
    """numpy, by the names of cupy."""

    def __init__(self, memory, module=np, prefix="cupy"):
        self.memory, self.module, self.prefix = memory, module, prefix

    def __getattr__(self, name):
        if name == "linalg":
            return Module(self.memory, np.linalg, "cupy.linalg")
        parameters = NAMES.get(f"{self.prefix}.{name}")
        if parameters is None:
            raise AttributeError(f"CuPy 14.2.0 has no {self.prefix}.{name}")
        value = getattr(self.module, name)
        return (
            value
            if isinstance(value, type)
            else checked(value, f"{self.prefix}.{name}", parameters, self.memory)
        )

    def asarray(self, value, dtype=None):
        return (
            value
            if isinstance(value, Array)
            else Array(np.array(value, dtype, order="C"), self.memory)
        )

    def asnumpy(self, value):
        if not isinstance(value, Array):
            raise TypeError(f"{type(value)} is in main memory already")
        return on_card(value, self.memory).copy()


def strict_card(size=1 << 40, promised=None, number=0):
    """A card with so many bytes of memory; it claims that `promised` are free, if that is given."""
    memory = Memory(size, number)
    solve = checked(
        scipy.linalg.solve_triangular,
        "cupyx.scipy.linalg.solve_triangular",
        NAMES["cupyx.scipy.linalg.solve_triangular"],
        memory,
    )
    xp = Module(memory)
    return Card(
        xp,
        xp.asnumpy,
        solve,
        lambda: promised or memory.size - memory.used,
        lambda: None,
        f"stand-in {number}",
        lambda: current(number),
    )


def numpy_card():
    """NumPy as the card: the same code in main memory."""
    return Card(
        np,
        lambda array: array,
        scipy.linalg.solve_triangular,
        lambda: 1 << 40,
        lambda: None,
        "NumPy",
    )


def real_card():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    try:
        return cupy_cards(most=1)[0][0]
    except Exception as fault:
        pytest.skip(f"no card: {fault}")


CARDS = pytest.mark.parametrize(
    "make_card",
    [numpy_card, strict_card, pytest.param(real_card, marks=pytest.mark.gpu)],
    ids=["numpy", "strict", "gpu"],
)
