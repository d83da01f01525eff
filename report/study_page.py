"""Make the HTML page of several upscaled volumes: a table with one row for each volume.

This module writes no files. The page holds small pictures (thumbnails); the viewer of a volume is
on another page, beside its result. Style and script of the table are in study.html.
"""
import html
import math
from pathlib import Path

import numpy as np

from disk.metrics import no_formula
from report.page import by_axis, fill_template, goal_in_words, path_as_link, profile_in_words
from util import robust_deviation

TABLE = Path(__file__).with_name("study.html")  # with placeholders such as @ROWS@
FEWEST = 10  # with fewer volumes no outliers are searched, because their median is unreliable
FAR = 3.5  # robust standard deviations from the median of an outlier (Iglewicz and Hoaglin 1993)
# Columns that are searched for outliers, and the smallest standard deviation that is assumed.
# Estimates from one scanner vary so little that harmless differences would otherwise be marked.
SEARCHED = {"noise": 0.001, "distance": 0.05}
STATES = ("failed", "incomplete", "outlier", "fine already", "done")  # the worst first
COLUMNS = (  # title, kind of sorting, explanation
    ("volume", "text", "Name of the volume, with a link to its viewer"),
    ("state", "number", "failed, incomplete, outlier, fine already or done"),
    ("messages", "text", "Messages about the volume, or why it failed"),
    ("noise", "number", "Estimated noise, in per cent of the brightest intensity"),
    ("slice profile", "text", "Slice profile: given, or estimated from the volume"),
    ("distance", "number", "Distance of noise and blur from those of the training volumes"),
    ("blur believed", "number", "Weight of the estimated blur; otherwise the least is assumed"),
    ("voxels", "number", "Voxels of the volume, and of the result"),
    ("voxel size", "number", "Voxel size of the result"),
    ("seconds", "number", "Time for upscaling"),
)
NOTE = ("An outlier lies more than 3.5 robust standard deviations from the median of this table. "
        "For filters that refine several axes, the estimated blur is fully believed up to a "
        "distance of 1.2 to 3, which depends on noise and voxel size.")


def study_page(about, rows, thumbnails):
    """The page of several upscaled volumes, as pieces of text.

    Parameters
    ----------
    about : dict
        See `page.make_page`.
    rows : list of dict
        One for each volume, with its description (see `restoring.upscaling`) and the keys: volume
        (name); page (relative path of its viewer, or None); missed (number of volumes of a series
        that could not be restored). For a volume without a result: volume; failed (reason); fine
        (True if it has the requested voxel size).
    thumbnails : iterable of str
        For each row, a JPEG file in base64, or an empty str; only one at a time is in memory.

    Yields
    ------
    str
    """
    marks = find_outliers(rows)
    states = [state_of(row, mark) for row, mark in zip(rows, marks, strict=True)]
    plural = "" if len(rows) == 1 else "s"
    title = f"{len(rows)} volume{plural} upscaled {goal_in_words(about['settings'])}"
    yield from fill_template(title, _content(rows, marks, states, thumbnails), about)


def _content(rows, marks, states, thumbnails):
    """The HTML of the table as pieces of text, one for each row."""
    head = "".join(f'<th scope="col" data-kind="{kind}" title="{about}"><button type="button">'
                   f'{name}</button></th>' for name, kind, about in COLUMNS)
    there = {*states, *(["outlier"] if any(marks) else [])}  # an incomplete one may be an outlier
    buttons = "".join(f'<button type="button" data-find="{state}">{state}</button>'
                      for state in STATES[:-1] if state in there)
    if buttons:
        buttons += '<button type="button" data-find="">all</button>'
    before, after = TABLE.read_text(encoding="utf-8").split("@ROWS@")
    for name, text in (("COUNTS", counts_in_words(states, marks, rows)), ("BUTTONS", buttons),
                       ("HEAD", head), ("NOTE", NOTE)):
        before = before.replace(f"@{name}@", text)
    yield before
    for row, mark, state, thumbnail in zip(rows, marks, states, thumbnails, strict=True):
        yield row_html(row, mark, state, thumbnail) + "\n"
    yield after


def find_outliers(rows):
    """Mark the values that are far from the median of all volumes.

    For "distance", only large values are marked, because a small distance is harmless.

    Parameters
    ----------
    rows : list of dict
        See `study_page`.

    Returns
    -------
    list of dict
        For each row: a dict with "high" or "low" by column name.

    Examples
    --------
    >>> rows = [{"noise": 0.02}] * 9 + [{"noise": 0.09}, {"failed": "no volume"}]
    >>> find_outliers(rows)[-2:]
    [{'noise': 'high'}, {}]
    """
    marks = [{} for _ in rows]
    for name, least in SEARCHED.items():
        values = np.array([row.get(name, math.nan) for row in rows], float)
        known = values[np.isfinite(values)]
        if len(known) < FEWEST:
            continue
        middle = np.median(known)
        deviation = max(robust_deviation(known), least)
        scores = (values - middle) / deviation  # NaN for missing values
        for mark, score in zip(marks, scores, strict=True):
            if score > FAR:
                mark[name] = "high"
            elif score < -FAR and name != "distance":
                mark[name] = "low"
    return marks


def state_of(row, mark):
    """The state of a row: one of STATES; `mark` is from `find_outliers`."""
    if "failed" in row:
        return "fine already" if row.get("fine") else "failed"
    return "incomplete" if row.get("missed") else "outlier" if mark else "done"


def counts_in_words(states, marks, rows):
    """Numbers of upscaled, failed, incomplete and outlying volumes, as HTML."""
    failed, incomplete, fine = map(states.count, ("failed", "incomplete", "fine already"))
    upscaled = len(states) - failed - fine
    words = [f"{upscaled} of {len(states)} volume{'' if len(states) == 1 else 's'} upscaled"]
    words += [f"{fine} fine already"] * bool(fine)
    words += [f'<strong class="mark">{failed} failed</strong>'] * bool(failed)
    words += [f"{incomplete} incomplete"] * bool(incomplete)
    spline = sum(row.get("trust", 1) < 1 for row in rows)
    words += [f"{spline} partly or wholly by spline"] * bool(spline)
    least = sum(row.get("blur_trust", 1) < 1 <= row.get("trust", 1) for row in rows)
    words += [f"{least} partly or wholly with least blur"] * bool(least)
    parts = ", ".join(f"{name} {number}" for name in SEARCHED
                      if (number := sum(name in mark for mark in marks)))
    found = sum(map(bool, marks))
    plural = "" if found == 1 else "s"
    words.append(f"<strong>{found} outlier{plural}</strong> ({parts})" if found
                 else "no outliers" if upscaled >= FEWEST
                 else f"outliers are searched from {FEWEST} volumes on")
    return ", ".join(words) + "."


def row_html(row, mark, state, thumbnail):
    """A row of the table as HTML; for the keys of `row` see `study_page`.

    The attribute ``data-v`` of a cell holds its value for sorting.
    """
    folder, slash, name = (html.escape(no_formula(part))  # on separate lines
                           for part in row["volume"].rpartition("/"))
    named = f'<img class="thumb" alt="" data-jpeg="{html.escape(thumbnail)}">' if thumbnail else ""
    folder = f"<small>{folder}{slash}</small><br>" if slash else ""
    named += f"<bdi>{folder}{name}</bdi>"
    link = f'a href="{path_as_link(row["page"])}"' if row.get("page") else "span"
    named = f"<{link}>{named}</{link.partition(' ')[0]}>"
    if "mask" in row:
        named += f'<small>mask: {html.escape(row["mask"])}</small>'
    shown = '<span class="mark">failed</span>' if state == "failed" else state
    messages = [row["failed"]] if "failed" in row else row.get("messages", ())
    words = "".join(f"<p>{html.escape(message)}</p>" for message in messages)
    profile = profile_in_words(row)
    cells = [_cell(STATES.index(state) + 1, shown, "text"),
             _cell(" ".join(messages), words, "words"),
             _number(row, "noise", "{:.1f} %", mark, 100),
             _cell(profile, html.escape(profile), "text"),
             _number(row, "distance", "{:.1f}", mark),
             _number(row, "blur_trust", "{:.0f} %", mark, 100), *_grid_cells(row),
             _number(row, "seconds", "{:.1f}", mark)]
    return (f'<tr><th scope="row" data-v="{html.escape(row["volume"])}">{named}</th>'
            f'{"".join(cells)}</tr>')


def _cell(value, shown, kind=""):
    """A cell as HTML, from its value for sorting, its content as HTML, and its CSS class."""
    kind = f' class="{kind}"' if kind else ""
    return f'<td{kind} data-v="{html.escape(str(value))}">{shown}</td>'


def _number(row, name, form, mark, scale=1):
    """A cell with a number, and a mark if it is an outlier; empty if `row` lacks the number."""
    if name not in row:
        return _cell("", "")
    word = f'<br><span class="mark">outlier: {mark[name]}</span>' if name in mark else ""
    return _cell(row[name], form.format(scale * row[name]) + word)


def _grid_cells(row):
    """Two cells: numbers of voxels before and after upscaling, and the new voxel size."""
    if "to" not in row:
        return _cell("", ""), _cell("", "")
    size = by_axis(f"{side:.3g}" for side in row["voxel_size"])
    return (_cell(math.prod(row["from"]), f"{by_axis(row['from'])}<br>→ {by_axis(row['to'])}"),
            _cell(math.prod(row["voxel_size"]), f"{size} {row['unit']}"))
