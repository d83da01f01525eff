"""The sample brain of `make demo`, for the scripts that draw the pictures of the docs."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def demo_file(*parts):
    """The newest file of the demo that matches; the program ends with a message if there is none.

    Parameters
    ----------
    parts : str
        Folders inside demo/ and the pattern of a name, such as ``"test", "*.nii.gz"``.

    Returns
    -------
    Path
    """
    found = list((ROOT / "demo").glob("/".join(parts)))
    if not found:
        print(f"no file demo/{'/'.join(parts)}; run `make demo` first", file=sys.stderr)
        sys.exit(2)
    return max(found, key=lambda file: file.stat().st_mtime)
