"""Checks of the method in a file of settings: names, types, ranges and choices."""
import dataclasses
from typing import Any

from filter_constant import OCTAHEDRAL_FILTER_MAX, Method
from machine.option_fields import fault_of

# Options of earlier versions, with the only value that this version supports (None: any value).
GONE = {"splits": "learned", "inverted": 0.0, "bent": 0.0, "train_div": None}


def checked_settings(saved: Any) -> dict[str, Any]:
    """Check the names, types, ranges and choices of saved settings; returns their values.

    Parameters
    ----------
    saved : object
        Content of the file.

    Returns
    -------
    values : dict
        Values for the fields of `Method`.

    Raises
    ------
    ValueError
        If a setting is not valid. The message names it.
    """
    entries = {entry.name: entry for entry in dataclasses.fields(Method)}
    if not isinstance(saved, dict):
        raise ValueError(f"settings missing or unknown: {type(saved).__name__}")
    # Settings of earlier versions lack newer options: they learned as with the default values.
    newer: dict[str, Any] = {name: entry.default for name, entry in entries.items()
                             if "since" in entry.metadata}
    values = newer | saved
    for name, still in GONE.items():
        if values.pop(name, still) != still and still is not None:
            raise ValueError(f"{name}: this version supports only {still}")
    if set(values) != set(entries):
        odd = sorted(map(str, set(values) ^ set(entries)))[:3]
        raise ValueError(f"settings missing or unknown: {', '.join(odd)}")
    for name in ("factor", "profile"):
        if not isinstance(values[name], (list, tuple)) or not values[name]:
            raise ValueError(f"{name} is no list")
        values[name] = tuple(values[name])
    if len(values["factor"]) != 3:
        raise ValueError("factor is not three numbers")
    # Earlier versions wrote 0 instead of None.
    values |= {name: None for name in ("ridge", "train_file_max") if saved[name] in (0, None)}
    for name, entry in entries.items():
        kind = entry.metadata["kind"]
        for value in values[name] if "several" in entry.metadata else (values[name],):
            optional = "none" in entry.metadata or "auto" in entry.metadata
            if type(value) is not kind and not (value is None and optional):
                raise ValueError(f"{name} is {value!r:.40}, not {kind.__name__}")
            if fault := fault_of(entry, value):
                raise ValueError(f"{name}: {fault}")
    octahedral = values["feature_space"] == "octahedral"
    if octahedral and values["filter_len"] > OCTAHEDRAL_FILTER_MAX:
        raise ValueError(f"filter_len: {values['filter_len']} is above {OCTAHEDRAL_FILTER_MAX}")
    return values
