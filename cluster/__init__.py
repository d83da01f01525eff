"""Training and restoring on the workers of a Dask cluster; imported only with --scheduler."""
