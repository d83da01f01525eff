"""What serves any numerical program: threads, vectors, BLAS, memory, errors, progress.

Nothing of MRI is in it.
"""
