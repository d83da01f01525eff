"""Print the table of docs/options.md from the options in filter_constant.py.

python docs/options_table.py
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from filter_constant import OPTIONS  # noqa: E402
from machine.option_fields import flag_of, in_words  # noqa: E402
from options.command_line import GROUPS, options_of  # noqa: E402


def rows():
    """The lines of the table, heading included."""
    lines = ["| option | default | for | what it does |", "|---|---|---|---|"]
    for entry in OPTIONS:
        scripts = [f"{name}.py" for name in GROUPS if entry in options_of(name)]
        flag = flag_of(entry)
        names = [f"`--{flag}`"] + [f"`--no-{flag}`"] * ("switch" in entry.metadata)
        text = entry.metadata["help"].replace("<", "&lt;").replace("|", "\\|")
        default, named = in_words(entry.default), re.search(r" \(default: (.*)\)$", text)
        if named:  # the help text explains a default that is determined at run time
            text, default = text[: named.start()], named[1]
        if choices := entry.metadata.get("choices"):
            text += f" ({', '.join(f'`{choice}`' for choice in choices)})"
        lines.append(f"| {', '.join(names)} | {default} | {', '.join(scripts)} | {text} |")
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
