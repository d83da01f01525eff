"""Vectors of sixteen or eight float32 numbers, for kernels that numba compiles.

Without vectors, the compiler would load the voxels of a patch one by one. LLVM translates the
operations on vectors for every processor: one vector is one register of AVX-512, two registers of
AVX2, or four of SSE or NEON. Arrays of any shape are addressed by flat indices. They must be
C-contiguous. Bounds are not checked.
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from machine.kernels import njit

LANES, HALF = 16, 8
INDEX = ir.IntType(32)


class Vector(types.Type):
    """numba's type of a vector of `lanes` float32 numbers."""

    def __init__(self, lanes):
        self.lanes = lanes
        super().__init__(name=f"float32x{lanes}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _vector(kind.lanes))


def _vector(lanes):
    """LLVM's type of a vector of `lanes` float32 numbers."""
    return ir.VectorType(ir.FloatType(), lanes)


def _address(context, builder, signature, arguments, lanes):
    """The address of element ``arguments[1]`` of the flat array ``arguments[0]``."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), _vector(lanes).as_pointer())


def _zeros(lanes):
    """The signature of `zeros`, and its code generator."""
    def generate(context, builder, signature, arguments):
        return ir.Constant(_vector(lanes), [0.0] * lanes)

    return Vector(lanes)(), generate


def _load(array, lanes):
    """The signature of `load`, and its code generator."""
    def generate(context, builder, signature, arguments):
        return builder.load(_address(context, builder, signature, arguments, lanes), align=4)

    return Vector(lanes)(array, types.intp), generate


@intrinsic
def zeros(typing):
    """Sixteen zeros."""
    return _zeros(LANES)


@intrinsic
def zeros_half(typing):
    """Eight zeros."""
    return _zeros(HALF)


@intrinsic
def load(typing, array, start):
    """``array[start:start + 16]``."""
    return _load(array, LANES)


@intrinsic
def load_half(typing, array, start):
    """``array[start:start + 8]``."""
    return _load(array, HALF)


@intrinsic
def splat(typing, value):
    """A vector whose sixteen elements are all `value`."""
    def generate(context, builder, signature, arguments):
        nothing = ir.Constant(_vector(LANES), ir.Undefined)
        one = builder.insert_element(nothing, arguments[0], INDEX(0))
        first = ir.Constant(ir.VectorType(INDEX, LANES), [0] * LANES)
        return builder.shuffle_vector(one, nothing, first)

    return Vector(LANES)(types.float32), generate


@intrinsic
def store(typing, array, start, vector):
    """``array[start:start + 16] = vector``; ``start + 8`` for a vector of eight numbers."""
    def generate(context, builder, signature, arguments):
        place = _address(context, builder, signature, arguments, vector.lanes)
        builder.store(arguments[2], place, align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), generate


@intrinsic
def multiply_add(typing, a, b, c):
    """``a * b + c``, rounded only once on processors with fused multiply-add."""
    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_vector(a.lanes), [_vector(a.lanes)] * 3)
        name = f"llvm.fmuladd.v{a.lanes}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return a(a, b, c), generate


@intrinsic
def total(typing, vector):
    """The sum of a vector's elements: its halves are added, then the halves of the result, ..."""
    def generate(context, builder, signature, arguments):
        rest, lanes = arguments[0], vector.lanes

        def part(first):
            chosen = ir.Constant(ir.VectorType(INDEX, lanes), list(range(first, first + lanes)))
            return builder.shuffle_vector(rest, ir.Constant(rest.type, ir.Undefined), chosen)

        while lanes > 1:
            lanes //= 2
            rest = builder.fadd(part(0), part(lanes))
        return builder.extract_element(rest, INDEX(0))

    return types.float32(vector), generate


@njit(cache=True, error_model="numpy")
def correlate(x, start, step, weights, result, place, count):
    """Correlate a flat array with weights whose inputs lie `step` elements apart.

    ``result[place + k] = sum over t of weights[t] * x[start + k + t * step]`` for k below `count`.
    `count` is rounded up to whole vectors.

    Examples
    --------
    >>> import numpy as np
    >>> x, result = np.arange(40, dtype=np.float32), np.zeros(16, np.float32)
    >>> correlate(x, 0, 2, np.array([0.5, 0.5], np.float32), result, 0, 3)
    >>> result[:3]  # x[k] and x[k + 2]
    array([1., 2., 3.], dtype=float32)
    """
    for k in range(0, count, LANES):
        found = zeros()
        for t in range(weights.size):
            found = multiply_add(splat(weights[t]), load(x, start + k + t * step), found)
        store(result, place + k, found)
