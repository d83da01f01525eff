"""The published method's own kernels."""
