"""The page that a person opens: figures, settings, and a viewer of each volume.

Nothing here touches disk: the page comes back as text. It holds all it needs, slices included, and reads without a network.
"""
import base64
import html
import io
import json

import numpy as np
from PIL import Image, features

from crop_black import tight_box
from filter_constant import start_name
from pictures import EDGES, PLANES, canonical, middle, plane
from threads import in_threads

VOLUME_BYTES = 2_800_000  # of a volume's slices, in the page
PAGE_BYTES = 60_000_000  # of all slices: what a browser still opens at once
SLICE_FORMAT, SLICE_QUALITY = ("webp", 88) if features.check("webp") else ("jpeg", 88)


def viewer(name, images, affine, volumes=1):
    """What the page needs to show a volume: slices in three planes, as data URIs.

    As many slices, evenly spread, as fit in VOLUME_BYTES, or in this volume's share of PAGE_BYTES where it is one of many.

    Parameters
    ----------
    name : str
    images : dict of str to ndarray, shape (X, Y, Z), in [0, 1]
    affine : ndarray, shape (4, 4)
    volumes : int
        How many the page will show.

    Returns
    -------
    dict of plain values
    """
    images, sizes = canonical(images, affine)
    images = {label: np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8) for label, image in images.items()}
    first = next(iter(images.values()))
    cuts, budget = middle(first), min(VOLUME_BYTES, PAGE_BYTES / volumes) / 3
    planes = []
    for axis, used in enumerate(tight_box(first)):
        each = sum(len(encode(plane(image, axis, cuts[axis]))) for image in images.values())
        number = int(np.clip(budget / each, 1, used.stop - used.start))
        places = np.unique(np.linspace(used.start, used.stop - 1, number + 2).round().astype(int)[1:-1] if number < 3 else
                           np.linspace(used.start, used.stop - 1, number).round().astype(int))
        shown = plane(first, axis, 0)
        across, up = np.delete(sizes, axis)
        planes.append({"name": PLANES[axis], "edges": EDGES[axis], "places": places.tolist(), "of": first.shape[axis],
                       "start": int(np.abs(places - cuts[axis]).argmin()),
                       "pixels": shown.shape[::-1], "mm": [round(shown.shape[1] * across, 2), round(shown.shape[0] * up, 2)],
                       "slices": {label: [None] * len(places) for label in images}})

    def encode_slice(task):
        axis, label, n = task
        cut = planes[axis]
        cut["slices"][label][n] = encode(plane(images[label], axis, cut["places"][n]))

    in_threads([(axis, label, n) for axis, cut in enumerate(planes) for label in images for n in range(len(cut["places"]))],
               encode_slice)
    return {"name": name, "kinds": list(images), "planes": planes}


def encode(pixels):
    """A slice as base64 of a WebP (or JPEG) file."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, SLICE_FORMAT, quality=SLICE_QUALITY, method=2)
    return base64.b64encode(file.getvalue()).decode()


def page(about, rows, viewers):
    """The self-contained page.

    Parameters
    ----------
    about : dict
        command, settings, filters (name to SHA-256) and versions.
    rows : list of dict
        Figures of each volume, or what was upscaled.
    viewers : list of dict
        As `viewer` makes them.

    Returns
    -------
    str
    """
    upscaled = "to" in rows[0]
    title = (f"{len(rows)} volume{'s' * (len(rows) > 1)} {'upscaled' if upscaled else 'degraded and restored'} by "
             + " × ".join(map(str, about["settings"]["factor"])))
    figures = table_upscaled(rows) if upscaled else table_figures(rows, about["settings"]["start"]) + plot_gains(rows)
    parts = {"TITLE": title, "FIGURES": figures,
             "VIEWERS": "".join(viewer_html(number, shown) for number, shown in enumerate(viewers)),
             "ABOUT": about_html(about), "FORMAT": SLICE_FORMAT}
    text = TEMPLATE
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


def table_figures(rows, start):
    """Figures as an HTML table, with a last row of means; `start` says what the filters begin with."""
    names = (("lr", start_name(start)), ("spline5", "best spline"), ("sr", "restored"))
    head = "".join(f'<th colspan="2" scope="colgroup">{label}</th>' for _, label in names)
    lines = []
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "volume"}
    for row in rows + ([{"volume": "mean"} | mean] if len(rows) > 1 else []):
        cells = "".join(f"<td>{row[f'{key}_psnr']:.2f}</td><td>{row[f'{key}_ssim']:.4f}</td>" for key, _ in names)
        lines.append(f'<tr><th scope="row">{html.escape(row["volume"])}</th>{cells}<td>{row["gain_over_spline"]:+.2f}</td></tr>')
    return ('<div class="scroll"><table><thead><tr><th rowspan="2" scope="col">volume</th>' + head
            + '<th rowspan="2" scope="col">gain over<br>spline, dB</th></tr><tr>' + "<th>PSNR</th><th>SSIM</th>" * 3
            + f'</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
            + '<p class="note">PSNR in dB and SSIM over the brain. '
            + f'{start_name(start)}: what the filters begin with.</p>')


def table_upscaled(rows):
    """What was upscaled, as an HTML table."""
    lines = "".join(f'<tr><th scope="row">{html.escape(row["volume"])}</th><td>{" × ".join(map(str, row["from"]))}</td>'
                    f'<td>{" × ".join(map(str, row["to"]))}</td><td>{" × ".join(f"{size:g}" for size in row["voxel_mm"])}</td>'
                    f'<td>{row["seconds"]:.1f}</td></tr>' for row in rows)
    return ('<div class="scroll"><table><thead><tr><th>volume</th><th>voxels</th><th>upscaled to</th><th>voxel, mm</th>'
            f'<th>seconds</th></tr></thead><tbody>{lines}</tbody></table></div>')


def plot_gains(rows):
    """Gain over the best spline of each volume, as an inline SVG that takes the page's colours."""
    gains = [row["gain_over_spline"] for row in rows]
    low, high = min(0, *gains), max(0, *gains) or 1
    scale, left, step = 360 / (high - low or 1), 230, 22
    zero = left - low * scale
    bars = "".join(
        f'<text x="{left - 12}" y="{n * step + 16}" text-anchor="end">{html.escape(row["volume"][:30])}</text>'
        f'<rect class="{"worse" if gain < 0 else "better"}" x="{min(zero, zero + gain * scale):.1f}" y="{n * step + 4}" '
        f'width="{abs(gain) * scale:.1f}" height="{step - 7}" rx="2"/>'
        f'<text x="{max(zero, zero + gain * scale) + 6:.1f}" y="{n * step + 16}">{gain:+.2f} dB</text>'
        for n, (row, gain) in enumerate(zip(rows, gains, strict=True)))
    height = len(rows) * step + 4
    return (f'<svg viewBox="0 0 670 {height}" width="670" role="img" aria-label="gain over the best spline, dB">{bars}'
            f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height}"/></svg>'
            '<p class="note">Gain of the restored volume over the best spline.</p>')


def viewer_html(number, shown):
    """One volume's viewer; its slices lie beside it as JSON."""
    kinds = "".join(f'<button type="button" data-kind="{n}" aria-pressed="false"><kbd>{n + 1}</kbd> {html.escape(kind)}</button>'
                    for n, kind in enumerate(shown["kinds"]))
    planes = []
    for axis, cut in enumerate(shown["planes"]):
        left, right, top, bottom = cut["edges"]
        layers = "".join(f'<img data-kind="{n}" alt="{cut["name"]} slice, {html.escape(kind)}" width="{cut["pixels"][0]}" '
                         f'height="{cut["pixels"][1]}">' for n, kind in enumerate(shown["kinds"]))
        planes.append(
            f'<figure style="--w:{cut["mm"][0]};--h:{cut["mm"][1]}"><div class="stack" data-axis="{axis}">{layers}'
            f'<i class="l">{left}</i><i class="r">{right}</i><i class="t">{top}</i><i class="b">{bottom}</i></div>'
            f'<figcaption><label>{cut["name"]} <input type="range" min="0" max="{len(cut["places"]) - 1}" '
            f'value="{cut["start"]}" data-axis="{axis}" aria-label="{cut["name"]} slice"></label><output></output></figcaption>'
            '</figure>')
    data = json.dumps(shown["planes"]).replace("<", "\\u003c")
    return (f'<section class="viewer" tabindex="0" id="volume{number}" aria-label="viewer of {html.escape(shown["name"])}">'
            f'<h3>{html.escape(shown["name"])}</h3><div class="bar" role="toolbar">{kinds}'
            '<button type="button" class="difference" aria-pressed="false"><kbd>D</kbd> difference</button>'
            '<span class="now" role="status"></span></div>'
            f'<div class="planes">{"".join(planes)}</div><script type="application/json">{data}</script></section>')


def about_html(about):
    """What was run, as lists that unfold."""
    def table(values):
        return "<table>" + "".join(f'<tr><th scope="row">{html.escape(str(key))}</th><td>{html.escape(str(value))}</td></tr>'
                                   for key, value in values.items()) + "</table>"

    return (f'<p><code>{html.escape(about["command"])}</code></p>'
            f'<details><summary>Settings</summary>{table(about["settings"])}</details>'
            f'<details><summary>Filters, SHA-256</summary>{table(about["filters"])}</details>'
            f'<details><summary>Versions</summary>{table(about["versions"])}</details>')


TEMPLATE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5d6678; --paper: #fbfbfc; --panel: #fff; --rule: #d9dde5;
  --key: #eef0f4; --better: #16806a; --worse: #b3412e; --on: #1f5fbf; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ee; --soft: #98a1b3; --paper: #14171d; --panel: #1b1f27;
  --rule: #323846; --key: #2a303c; --better: #4cc2a6; --worse: #ee8570; --on: #3a78d6; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1240px; margin: 0 auto;
  padding: 1.5rem 1.2rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1rem; margin: 0; }
code { font-size: .9em; overflow-wrap: anywhere; } .note { color: var(--soft); font-size: .87rem; margin: .4rem 0 1.2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--rule); text-align: right; } th[scope=row] { text-align: left;
  font-weight: 500; } thead th { font-weight: 600; color: var(--soft); text-align: right; } thead tr:first-child th:first-child {
  text-align: left; } details td { text-align: left; overflow-wrap: anywhere; } details { margin: .4rem 0; }
summary { cursor: pointer; } svg { max-width: 100%; height: auto; font-size: 12px; margin-top: 1.2rem; display: block; }
svg text { fill: var(--ink); } svg line { stroke: var(--soft); } .better { fill: var(--better); } .worse { fill: var(--worse); }
.viewer { background: var(--panel); border: 1px solid var(--rule); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
.viewer:focus-visible, button:focus-visible, input:focus-visible { outline: 2px solid var(--on); outline-offset: 2px; }
.bar { display: flex; gap: .4rem; flex-wrap: wrap; align-items: center; margin: .6rem 0; }
button { font: inherit; font-size: .9rem; color: inherit; background: var(--key); border: 1px solid var(--rule);
  border-radius: 6px; padding: .25rem .7rem; cursor: pointer; }
button[aria-pressed=true] { background: var(--on); border-color: var(--on); color: #fff; }
.difference { margin-left: .8rem; } .now { color: var(--soft); font-size: .87rem; margin-left: .5rem; }
kbd { font: inherit; opacity: .65; } .planes { display: flex; gap: .8rem; align-items: flex-end; }
figure { margin: 0; flex: calc(var(--w) / var(--h)) 1 0; min-width: 0; }
.stack { position: relative; aspect-ratio: var(--w) / var(--h); background: #000; isolation: isolate; cursor: pointer;
  overflow: hidden; border-radius: 3px; }
.stack img { position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: pixelated; visibility: hidden; }
.stack img.on { visibility: visible; } .differs img.on ~ img.on { mix-blend-mode: difference; }
.differs .stack { filter: brightness(4); } .stack i { position: absolute; color: #d8dbe2; font: 11px system-ui, sans-serif;
  text-shadow: 0 0 3px #000; z-index: 1; } .l { left: 4px; top: 46%; } .r { right: 4px; top: 46%; } .t { top: 2px; left: 49%; }
.b { bottom: 2px; left: 49%; }
figcaption { display: flex; gap: .5rem; font-size: .87rem; align-items: center; margin-top: .3rem; }
figcaption label { display: flex; flex: 1; gap: .5rem; align-items: center; min-width: 0; } input { flex: 1; min-width: 0;
  accent-color: var(--on); } output { color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap; }
@media (max-width: 700px) { .planes { flex-direction: column; align-items: stretch; } figure { flex: none; } }
</style></head><body>
<h1>@TITLE@</h1>
<h2>Figures</h2>@FIGURES@
<h2>Look</h2>
<p class="note">Click a slice for the next image; hover over a name to see it for a moment; keys <kbd>1</kbd> <kbd>2</kbd>
<kbd>3</kbd> choose one, <kbd>space</kbd> the next, <kbd>D</kbd> shows four times the difference from the first,
<kbd>←</kbd> <kbd>→</kbd> move through the slices of the plane last touched, <kbd>↑</kbd> <kbd>↓</kbd> change the plane.
One pixel is one voxel; slices are lightly compressed. The files beside this page hold the voxels as they are.</p>
@VIEWERS@
<h2>What was run</h2>@ABOUT@
<script>
"use strict";
let last = null;
function setUp(section) {
  const planes = JSON.parse(section.querySelector("script").textContent);
  const stacks = [...section.querySelectorAll(".stack")], sliders = [...section.querySelectorAll("input")];
  const buttons = [...section.querySelectorAll("button[data-kind]")], difference = section.querySelector(".difference");
  const kinds = Object.keys(planes[0].slices);
  let chosen = kinds.length - 1, peeked = null, plane = 2;
  function load(axis) {
    const at = +sliders[axis].value;
    for (const img of stacks[axis].querySelectorAll("img"))
      img.src = "data:image/@FORMAT@;base64," + planes[axis].slices[kinds[img.dataset.kind]][at];
    section.querySelectorAll("output")[axis].textContent = (planes[axis].places[at] + 1) + " of " + planes[axis].of;
  }
  function show() {
    const kind = peeked ?? chosen, differs = difference.getAttribute("aria-pressed") === "true";
    section.classList.toggle("differs", differs);
    for (const img of section.querySelectorAll(".stack img"))
      img.classList.toggle("on", +img.dataset.kind === kind || (differs && img.dataset.kind === "0"));
    for (const stack of stacks) stack.style.background = differs && kind === 0 ? "#000" : "";
    if (differs && kind === 0) for (const img of section.querySelectorAll(".stack img")) img.classList.remove("on");
    buttons.forEach((button, n) => button.setAttribute("aria-pressed", n === chosen));
    section.querySelector(".now").textContent = differs ? "|" + kinds[kind] + " − " + kinds[0] + "| × 4" : kinds[kind];
  }
  function choose(kind) { chosen = kind; peeked = null; show(); }
  function flipDifference() {
    difference.setAttribute("aria-pressed", difference.getAttribute("aria-pressed") !== "true");
    show();
  }
  function move(step) { sliders[plane].value = +sliders[plane].value + step; load(plane); }
  buttons.forEach((button, n) => {
    button.addEventListener("click", () => choose(n));
    button.addEventListener("mouseenter", () => { peeked = n; show(); });
    button.addEventListener("mouseleave", () => { peeked = null; show(); });
  });
  difference.addEventListener("click", flipDifference);
  stacks.forEach((stack, axis) => stack.addEventListener("click", () => { plane = axis; choose((chosen + 1) % kinds.length); }));
  sliders.forEach((slider, axis) => slider.addEventListener("input", () => { plane = axis; load(axis); }));
  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onButton = document.activeElement.tagName === "BUTTON" && section.contains(document.activeElement);
    const onSlider = document.activeElement.tagName === "INPUT" && section.contains(document.activeElement);
    if (event.key >= "1" && event.key <= String(kinds.length)) choose(+event.key - 1);
    else if (event.key === " " && !onButton) choose((chosen + 1) % kinds.length);
    else if (event.key.toLowerCase() === "d") flipDifference();
    else if (event.key === "ArrowLeft" && !onSlider) move(-1);
    else if (event.key === "ArrowRight" && !onSlider) move(1);
    else if (event.key === "ArrowUp" && !onSlider) plane = (plane + 2) % 3;
    else if (event.key === "ArrowDown" && !onSlider) plane = (plane + 1) % 3;
    else return;
    event.preventDefault();
  }
  for (const name of ["mouseenter", "focusin"]) section.addEventListener(name, () => { last = key; });
  last ??= key;
  for (const axis of [0, 1, 2]) load(axis);
  show();
}
// A page may hold many volumes: all but the first are decoded when they come near the window.
const near = new IntersectionObserver(entries => entries.forEach(entry => {
  if (entry.isIntersecting) { near.unobserve(entry.target); setUp(entry.target); }
}), { rootMargin: "600px" });
document.querySelectorAll(".viewer").forEach((section, n) => n ? near.observe(section) : setUp(section));
document.addEventListener("keydown", event => last?.(event));
</script></body></html>
"""
