"""Everything that is read from and written to disk: volumes, filters, the sums of a training."""
