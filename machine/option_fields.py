"""Make a command line from a dataclass: each field is one option, with its help and limits.

This file imports the standard library only, so that ``--help`` and messages about wrong options
appear at once.
"""
import argparse
import math
import numbers
import os
from dataclasses import field

from machine.errors import one_line

# Types of values, for the type of an option, and their names.
KINDS = {bool: (bool, "True or False"), int: (numbers.Integral, "a whole number"),
         float: (numbers.Real, "a number"), str: (str, "a text")}


def option(default, group, text, kind=None, **limits):
    """A dataclass field that is an option of the command line.

    Parameters
    ----------
    default : object
        None if the option is off or is determined automatically by default.
    group : str
        Heading of the option in ``--help``.
    text : str
        Help text of the option.
    kind : type, optional
        Type of its values; by default the type of `default`.
    limits
        ``choices``, ``low``, ``high``, ``odd``: limits of its values. ``none``: a number that means
        None. ``auto``: True if the word "auto" means None. ``bare``: value of the option if it is
        given without a value. ``flag``: name on the command line, if it differs from the field's
        name. ``switch``: True if it has a ``--no-`` form. ``several``: True if it takes several
        values. ``metavar``: name of its value in the help. ``since``: True if filters of earlier
        versions lack it; they were learned with its default.
    """
    kind = kind or type(default)
    return field(default=default, metadata={"group": group, "help": text, "kind": kind, **limits})


class OneLineParser(argparse.ArgumentParser):
    """A parser that answers a wrong option with one line instead of the whole usage."""

    def error(self, message):
        self.exit(2, one_line(f"{self.prog}: error: {message} (see --help)") + "\n")


def parser_of(entries, groups, **about):
    """A parser with these fields as options, under the headings `groups`."""
    parser = OneLineParser(
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        **about,
    )
    headings = {group: parser.add_argument_group(group) for group in groups}
    for entry in entries:
        headings[entry.metadata["group"]].add_argument(
            f"--{flag_of(entry)}", dest=entry.name, **argument_of(entry))
    return parser


def flag_of(entry):
    """The name of a field on the command line."""
    return entry.metadata.get("flag", entry.name)


def argument_of(entry):
    """The keyword arguments of ``ArgumentParser.add_argument`` for a field."""
    limits, default, kind = entry.metadata, entry.default, entry.metadata["kind"]
    about = {"help": limits["help"].replace("%", "%%")}
    if default not in (None, "", ()):
        about["help"] += f" (default: {in_words(default)})"
    if "switch" in limits:
        return about | {"action": argparse.BooleanOptionalAction}
    if kind is bool:
        # The released code takes "--sharpen True"; a bare --sharpen is equal to it.
        return about | {"type": _yes_or_no, "nargs": "?", "const": True, "metavar": "BOOL"}
    if "several" in limits:
        about["nargs"] = "+"
    if "choices" in limits:
        return about | {"choices": limits["choices"]}
    letters = {int: "N", float: "X", str: "PATH"}
    about |= {"type": _reader(entry), "metavar": limits.get("metavar", letters[kind])}
    if "bare" in limits:
        about |= {"nargs": "?", "const": limits["bare"]}
    return about


def in_words(default):
    """A default as text.

    Examples
    --------
    >>> in_words(True), in_words(None), in_words((2, 2, 2)), in_words((0.0, 3.0)), in_words("")
    ('on', 'off', '2', '0 3', 'none')
    """
    if isinstance(default, bool) or default is None:
        return "on" if default else "off"
    if isinstance(default, tuple):
        values = default[:1] if len(set(default)) == 1 else default
        return " ".join(map(in_words, values)) or "none"
    return f"{default:g}" if isinstance(default, float) else str(default) or "none"


def fault_of(entry, value):
    """A message about an invalid value of a field; empty if the value is valid."""
    limits = entry.metadata
    if value is None and (entry.default is None or "auto" in limits):
        return ""
    kind, what = KINDS[limits["kind"]]
    if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
        return f"{value!r} is not {what}"
    if "choices" in limits and value not in limits["choices"]:
        return f"{value} is none of {', '.join(map(str, limits['choices']))}"
    low, high = limits.get("low", -math.inf), limits.get("high", math.inf)
    if isinstance(value, numbers.Real) and not low <= value <= high:
        return f"{value} is not in {low} to {high}"
    if limits.get("odd") and value % 2 == 0:
        return f"{value} is even; it needs a centre voxel, so an odd number"
    return ""


def _reader(entry):
    """A function from the text of an option to its value."""
    kind, limits = entry.metadata["kind"], entry.metadata

    def read(text):
        try:
            return as_typed(entry, text if limits.get("auto") and text == "auto" else kind(text))
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not {KINDS[kind][1]}") from None

    return read


def as_typed(entry, value):
    """A value of a field with the type that the command line gives it.

    A whole number becomes a float if the field is one. The word for an automatic choice, and a
    number that means "no limit", become None.
    """
    limits = entry.metadata
    if limits["kind"] is float and type(value) is int:
        value = float(value)
    automatic = limits.get("auto") and type(value) is str and value == "auto"
    limitless = "none" in limits and type(value) is int and value == limits["none"]
    return None if automatic or limitless else value


def _yes_or_no(text):
    if text.lower() not in ("true", "false"):
        hint = ""
        if os.path.lexists(text):
            hint = "; give folders and files with an option, such as --test_dir or --train_dir"
        raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False{hint}")
    return text.lower() == "true"
