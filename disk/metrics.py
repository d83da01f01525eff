"""The rows of metrics.csv: figures of each volume, and their mean."""
import csv

import numpy as np

from disk.files import whole_file

FORMULAS = tuple("=+-@\t\r＝＋－＠")  # first characters of spreadsheet formulas


def metrics_row(name, voxels, by_image):
    """One row of metrics.csv; `by_image` holds a dict of figures (PSNR, SSIM) for each image."""
    row = {"volume": name, "brain_voxels": int(voxels)}
    for image, found in by_image.items():
        row |= {f"{image}_{figure}": round(value, 5) for figure, value in found.items()}
    gain = by_image["sr"]["psnr"] - by_image["spline5"]["psnr"]
    return row | {"gain_over_spline": round(gain, 5)}


def mean_row(rows):
    """A row with the mean of each figure."""
    names = [name for name in rows[0] if name not in ("volume", "mask")]
    return {"volume": "mean"} | {name: float(np.mean([row[name] for row in rows]))
                                 for name in names}


def no_formula(value):
    """Make a value safe in a spreadsheet: a name that looks like a formula gets the prefix ``./``.

    The name with this prefix is still a valid path of the file.

    Examples
    --------
    >>> no_formula("=1+1.nii"), no_formula("a.nii"), no_formula(-0.5)
    ('./=1+1.nii', 'a.nii', -0.5)
    """
    return f"./{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def write_metrics(path, rows):
    """Write the figures of all volumes as CSV; names are changed by `no_formula`."""
    rows = [{name: no_formula(value) for name, value in row.items()} for row in rows]
    with (whole_file(path) as temporary,
          open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def start_name(start):
    """Name of the initial estimate in printed tables: LR for the published spline, else start."""
    return "LR" if start == "quadratic" else "start"
