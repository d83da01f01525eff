"""The few BLAS and LAPACK routines that learning spends its time in, called so that two threads can be in them at once.

SciPy's own wrappers hold the interpreter's lock, and NumPy's copy their input and mirror or clear triangles that nobody
reads. Here the routines that SciPy offers to Cython are called in place through ctypes, which lets the lock go.

Matrices are C-contiguous and lower triangles; to Fortran they are transposed, so upper ones.
"""
import ctypes
from functools import cache

import numpy as np
from numba.extending import get_cython_function_address

UPPER, NO_TRANSPOSE, NOT_UNIT = ctypes.byref(ctypes.c_char(b"U")), ctypes.byref(ctypes.c_char(b"N")), ctypes.byref(
    ctypes.c_char(b"N"))


@cache
def routine(module, name, arguments):
    """A Fortran routine that takes so many pointers."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(
        get_cython_function_address(f"scipy.linalg.cython_{module}", name))


def whole(number):
    """A whole number to a Fortran routine: its low half stands first, so integers of 32 and of 64 bits read the same."""
    return ctypes.byref(ctypes.c_int64(number))


def gram_of_rows(rows, product):
    """``product = rows.T @ rows``, the lower triangle only; float32, shapes (k, n) and (n, n)."""
    k, n = rows.shape
    routine("blas", "ssyrk", 10)(UPPER, NO_TRANSPOSE, whole(n), whole(k), ctypes.byref(ctypes.c_float(1)), rows.ctypes.data,
                                 whole(n), ctypes.byref(ctypes.c_float(0)), product.ctypes.data, whole(n))


def cholesky_in_place(matrix):
    """Replace the lower triangle of a float64 matrix by its Cholesky factor.

    Raises
    ------
    numpy.linalg.LinAlgError
        If it is not positive definite.
    """
    fault = ctypes.c_int64(0)
    routine("lapack", "dpotrf", 5)(UPPER, whole(len(matrix)), matrix.ctypes.data, whole(len(matrix)), ctypes.byref(fault))
    if fault.value:
        raise np.linalg.LinAlgError("matrix is not positive definite")


def solve_transposed(factor, vector):
    """Solve ``L.T x = vector`` in place, L the leading part of a lower triangle that is as long as the vector; returns it."""
    routine("blas", "dtrsv", 8)(UPPER, NO_TRANSPOSE, NOT_UNIT, whole(vector.size), factor.ctypes.data, whole(len(factor)),
                                vector.ctypes.data, whole(1))
    return vector


def symmetric_product(matrix, vector):
    """``Q @ vector``, Q the leading part, as long as the vector, of a symmetric matrix given by its lower triangle."""
    vector, result = np.ascontiguousarray(vector, np.float64).reshape(-1), np.empty(vector.size)
    routine("blas", "dsymv", 10)(UPPER, whole(vector.size), ctypes.byref(ctypes.c_double(1)), matrix.ctypes.data,
                                 whole(len(matrix)), vector.ctypes.data, whole(1), ctypes.byref(ctypes.c_double(0)),
                                 result.ctypes.data, whole(1))
    return result
