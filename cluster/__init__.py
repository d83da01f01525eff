"""Training on the worker processes of a Dask cluster; loaded only where one is asked for."""
