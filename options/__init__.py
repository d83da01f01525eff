"""The command line: its options and their checks."""
