"""Make the HTML page of a run: figures, settings, and a viewer of each volume.

This module writes no files: it yields the page in pieces of text, so that the slices of all volumes
are not in memory at the same time. The page contains all slices, and needs no network. Its style
and script are in page.html, and are the same for all pages.
"""
import html
import itertools
import re
from pathlib import Path
from urllib.parse import quote

from disk.metrics import mean_row, start_name
from disk.results import MADE_BY
from report.viewer import viewer_html

TEMPLATE = Path(__file__).with_name("page.html")  # with placeholders such as @TITLE@
LOOK = """<h2>Look</h2>
<p class="note">Click a slice to see the next image of the volume; move the pointer over a name to
see this image for a moment. The keys <kbd>1</kbd> <kbd>2</kbd> <kbd>3</kbd> choose an image,
<kbd>space</kbd> the next one; <kbd>D</kbd> shows four times the difference from the first image;
<kbd>←</kbd> <kbd>→</kbd> move through the slices of the plane last touched; <kbd>↑</kbd>
<kbd>↓</kbd> change the plane. One pixel is one voxel. Slices are lightly compressed; the files
beside this page hold the exact voxels.</p>
"""


def make_page(about, rows, viewers, pictures=None):
    """The page as pieces of text; it needs no other files.

    Parameters
    ----------
    about : dict
        Dict from `record.about_run`, with "results", the SHA-256 of each volume's result. If a page
        shows all volumes of the run, "report" is its path relative to this page.
    rows : list of dict
        Figures of each volume, or descriptions of upscaled volumes.
    viewers : iterable of dict
        Viewers from `viewer.make_viewer`; only one at a time is in memory.
    pictures : dict of str to str, optional
        For volumes without a viewer: path of the picture relative to the page, by volume name. It
        is used after the last viewer was taken.

    Yields
    ------
    str
    """
    if "to" in rows[0]:
        done, figures = "upscaled", table_upscaled(rows) + "".join(map(findings_html, rows))
    else:
        done = "degraded and restored"
        figures = table_figures(rows, about["settings"]["start"]) + plot_gains(rows)
    what = f"{len(rows)} volumes" if len(rows) > 1 else rows[0]["volume"]
    title = f"{what} {done} {goal_in_words(about['settings'])}"
    back = (f'<p><a href="{path_as_link(about["report"])}">All volumes of this run</a></p>'
            if "report" in about else "")
    content = itertools.chain(
        [back, "<h2>Figures</h2>", figures, LOOK],
        (viewer_html(*numbered) for numbered in enumerate(viewers)), map(links_html, [pictures]))
    yield from fill_template(title, content, about)


def fill_template(title, content, about):
    """Fill the template of all pages; yields pieces of text.

    Parameters
    ----------
    title : str
    content : iterable of str
        Pieces of HTML; only one at a time is in memory.
    about : dict
        See `make_page`.

    Yields
    ------
    str
    """
    before, after = TEMPLATE.read_text(encoding="utf-8").split("@CONTENT@")
    parts = {"MADE_BY": MADE_BY, "TITLE": html.escape(title), "ABOUT": about_html(about)}

    def filled(text):
        # All placeholders are replaced at once, because file names may look like placeholders.
        return re.sub(f"@({'|'.join(parts)})@", lambda found: parts[found[1]], text)

    yield filled(before)
    yield from content
    yield filled(after)


def by_axis(values):
    """Values along the three axes as text: 2 × 2 × 1."""
    return " × ".join(map(str, values))


def goal_in_words(settings):
    """The factor or the new voxel size as text: "by 2 × 2 × 1", "to isotropic voxels"."""
    if settings.get("voxel_size"):
        return f"to voxels of {by_axis(f'{side:g}' for side in settings['voxel_size'])}"
    if settings.get("isotropic"):
        return "to isotropic voxels"
    return f"by {by_axis(settings['factor'])}"


def named(row):
    """The names of a row's volume and of its brain mask, as HTML."""
    mask = f'<br><small>mask: {html.escape(row["mask"])}</small>' if "mask" in row else ""
    return html.escape(row["volume"]) + mask


def table_figures(rows, start):
    """The figures of all volumes as an HTML table, with a last row of means.

    The rows are from `disk.metrics.metrics_row`; `start` is the option --start.
    """
    start = start_name(start)
    names = (("lr", start), ("spline5", "best spline"), ("sr", "restored"))
    head = "".join(f'<th colspan="2" scope="colgroup">{label}</th>' for _, label in names)
    if len(rows) > 1:
        rows = [*rows, mean_row(rows)]
    lines = []
    for row in rows:
        cells = "".join(f"<td>{row[f'{key}_psnr']:.2f}</td><td>{row[f'{key}_ssim']:.4f}</td>"
                        for key, _ in names)
        lines.append(f'<tr><th scope="row">{named(row)}</th>{cells}'
                     f'<td>{row["gain_over_spline"]:+.2f}</td></tr>')
    return ('<div class="scroll"><table><thead><tr><th rowspan="2" scope="col">volume</th>'
            f'{head}<th rowspan="2" scope="col">gain over<br>spline, dB</th></tr><tr>'
            + "<th>PSNR</th><th>SSIM</th>" * len(names)
            + f'</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
            '<p class="note">PSNR in dB and SSIM over the brain. '
            f'{start}: the initial estimate, before the filters.</p>')


def table_upscaled(rows):
    """The grids of upscaled volumes as an HTML table.

    Keys of the rows: volume; from and to (voxels along each axis); voxel_size and unit; seconds.
    """
    lines = []
    for row in rows:
        size = f"{by_axis(f'{side:g}' for side in row['voxel_size'])} {row['unit']}"
        lines.append(f'<tr><th scope="row">{named(row)}</th>'
                     f'<td>{by_axis(row["from"])}</td><td>{by_axis(row["to"])}</td>'
                     f'<td>{size}</td><td>{row["seconds"]:.1f}</td></tr>')
    return ('<div class="scroll"><table><thead><tr><th>volume</th><th>voxels</th>'
            '<th>upscaled to</th><th>voxel</th><th>seconds</th></tr></thead>'
            f'<tbody>{"".join(lines)}</tbody></table></div>')


def findings_html(row):
    """The findings about an upscaled volume, and the messages about it, as HTML; maybe empty.

    The row describes the volume, see `restoring.upscaling.upscale_file`.
    """
    found = {"slice profile": profile_in_words(row)}
    if "noise" in row:
        found["noise"] = f"{100 * row['noise']:.1f} % of the brightest intensity"
    if "distance" in row:
        found["distance from the training brains"] = (f"{row['distance']:.1f}; usual up to "
                                                      f"{row['usual_distance']:.1f}")
    lowest = ", in one of its volumes" if len(row.get("from", ())) > 3 else ""
    if "trust" in row:
        rest = f"{lowest}; the rest is the spline" if row["trust"] < 1 else ""
        found["filters used"] = f"{100 * row['trust']:.0f} %{rest}"
    if row.get("blur_trust", 1) < 1 and row.get("trust") != 0:
        found["estimated blur used"] = (f"{100 * row['blur_trust']:.0f} %{lowest}; otherwise the "
                                        "least blur is assumed")
    lines = "".join(f'<tr><th scope="row">{title}</th><td>{html.escape(words)}</td></tr>'
                    for title, words in found.items() if words)
    table = f'<h2>Findings</h2><table class="words">{lines}</table>' if lines else ""
    messages = "".join(f"<li>{html.escape(message)}</li>" for message in row.get("messages", ()))
    return table + (f"<h2>Messages</h2><ul>{messages}</ul>" if messages else "")


def profile_in_words(row):
    """The slice profile of an upscaled volume: given, estimated or assumed; maybe empty."""
    if "told" in row:
        return f"given: {row['told']}"
    alone = len(row.get("from", ())) < 4  # in a series, it is the lowest weight of its volumes
    if row.get("blur_trust") == 0 and row.get("trust") != 0 and alone:
        return "least blur (assumed)"
    found = row.get("profile", row.get("like"))
    return f"estimated: {found}" if found else ""


def path_as_link(path):
    """A relative path as the target of a link."""
    return quote(path, errors="surrogateescape")


def plot_gains(rows):
    """A bar chart of each volume's gain over the best spline (dB), as inline SVG."""
    gains = [row["gain_over_spline"] for row in rows]
    low, high = min(0, *gains), max(0, *gains) or 1
    scale, left, step = 360 / (high - low or 1), 230, 22  # pixels: per dB, for names, per row
    zero = left - low * scale
    bars = []
    for n, (row, gain) in enumerate(zip(rows, gains, strict=True)):
        top, end = n * step, zero + gain * scale
        bars.append(
            f'<text x="{left - 12}" y="{top + 16}" text-anchor="end">'
            f'{html.escape(row["volume"][:30])}</text>'
            f'<rect class="{"worse" if gain < 0 else "better"}" x="{min(zero, end):.1f}" '
            f'y="{top + 4}" width="{abs(gain) * scale:.1f}" height="{step - 7}" rx="2"/>'
            f'<text x="{max(zero, end) + 6:.1f}" y="{top + 16}">{gain:+.2f} dB</text>')
    height = len(rows) * step + 4
    return (f'<svg viewBox="0 0 670 {height}" width="670" role="img" '
            f'aria-label="gain over the best spline, dB">{"".join(bars)}'
            f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height}"/></svg>'
            '<p class="note">Gain of the restored volume over the best spline.</p>')


def links_html(pictures):
    """Links to the pictures of volumes, as HTML; empty if there are no pictures."""
    links = ", ".join(f'<a href="{path_as_link(path)}">{html.escape(name)}</a>'
                      for name, path in (pictures or {}).items())
    return f"<p>Pictures of volumes without a viewer: {links}</p>" if links else ""


def about_html(about):
    """The command and its settings as HTML tables that open on a click; see `make_page`."""
    steps = "".join(unfolding(f"Filters × {by_axis(step['factor'])}, learned with",
                              step["learned_with"]) for step in about.get("steps", ()))
    return (f'<p><code>{html.escape(about["command"])}</code></p>'
            + unfolding("Settings", about["settings"])
            + unfolding("Results, SHA-256", about.get("results", {}))
            + unfolding("Filters, SHA-256", about["filters"])
            + steps
            + unfolding("Versions", about["versions"]))


def unfolding(title, values):
    """A dict as an HTML table that opens on a click on its title."""
    lines = "".join(f'<tr><th scope="row">{html.escape(str(key))}</th>'
                    f'<td>{html.escape(str(value))}</td></tr>' for key, value in values.items())
    return f'<details><summary>{title}</summary><table>{lines}</table></details>'
