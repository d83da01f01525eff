"""Kernels of the published method."""
