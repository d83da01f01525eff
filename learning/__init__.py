"""Training: the steps, the samples, and the sums on disk."""
