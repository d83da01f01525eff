"""A training and its state."""
