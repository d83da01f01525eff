"""The command line and the arguments of Python calls: options and their checks."""
