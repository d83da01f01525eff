"""Training: the steps, the samples, and the sums that are kept on disk."""
