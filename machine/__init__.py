"""Tools for any numerical program: threads, vectors, BLAS, memory, errors, progress.

Nothing in this package is about MRI.
"""
