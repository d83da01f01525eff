"""BLAS and LAPACK routines that work in place, and in several threads at the same time.

They take most of the time of a training. SciPy's own wrappers hold the interpreter's lock. NumPy's
wrappers copy their input, and mirror or clear triangles that are not needed. This file uses ctypes
to call the routines that SciPy offers to Cython. They work in place and release the lock.

Matrices are C-contiguous, and only their lower triangles are used. Fortran reads them transposed,
so the calls name upper triangles.
"""
import ctypes
from functools import cache

import numpy as np
import scipy.linalg  # noqa: F401 - its BLAS must be loaded when `threads.blas_alone` limits it
from numba.extending import get_cython_function_address

UPPER, NO_TRANSPOSE, NOT_UNIT = (ctypes.byref(ctypes.c_char(letter))
                                 for letter in (b"U", b"N", b"N"))


@cache
def routine(module, name, arguments):
    """A Fortran routine as a function; all its `arguments` arguments are pointers."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(
        get_cython_function_address(f"scipy.linalg.cython_{module}", name))


def whole(number):
    """A pointer to an integer for a Fortran routine, whose integers may have 32 or 64 bits.

    The low half comes first in memory, so both kinds of routine read the same number.
    """
    return ctypes.byref(ctypes.c_int64(number))


def gram_of_rows(rows, product):
    """Compute ``product = rows.T @ rows``, only its lower triangle; float32, (k, n) and (n, n).

    Examples
    --------
    >>> product = np.zeros((2, 2), np.float32)
    >>> gram_of_rows(np.array([[1, 2], [3, 4]], np.float32), product)
    >>> product
    array([[10.,  0.],
           [14., 20.]], dtype=float32)
    """
    k, n = rows.shape
    one, zero = ctypes.byref(ctypes.c_float(1)), ctypes.byref(ctypes.c_float(0))
    routine("blas", "ssyrk", 10)(UPPER, NO_TRANSPOSE, whole(n), whole(k), one, rows.ctypes.data,
                                 whole(n), zero, product.ctypes.data, whole(n))


def cholesky_in_place(matrix):
    """Replace the lower triangle of a float64 matrix by its Cholesky factor.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite.
    """
    fault, n = ctypes.c_int64(0), whole(len(matrix))
    routine("lapack", "dpotrf", 5)(UPPER, n, matrix.ctypes.data, n, ctypes.byref(fault))
    if fault.value:
        raise np.linalg.LinAlgError("matrix is not positive definite")


def solve_transposed(factor, vector):
    """Solve ``L.T x = vector`` in place, and return the vector.

    L is the leading part of the lower triangle `factor`; its side is the length of the vector.
    """
    routine("blas", "dtrsv", 8)(UPPER, NO_TRANSPOSE, NOT_UNIT, whole(vector.size),
                                factor.ctypes.data, whole(len(factor)),
                                vector.ctypes.data, whole(1))
    return vector


def symmetric_product(matrix, vector):
    """``Q @ vector``, where Q is the leading part of a symmetric matrix.

    Q has as many rows as the vector has elements. Only the lower triangle of the matrix is used.
    """
    vector, result = np.ascontiguousarray(vector, np.float64).reshape(-1), np.empty(vector.size)
    one, zero = ctypes.byref(ctypes.c_double(1)), ctypes.byref(ctypes.c_double(0))
    routine("blas", "dsymv", 10)(UPPER, whole(vector.size), one, matrix.ctypes.data,
                                 whole(len(matrix)), vector.ctypes.data, whole(1), zero,
                                 result.ctypes.data, whole(1))
    return result
