"""Training: its steps, the sampled acquisitions, and the sums of samples on disk."""
