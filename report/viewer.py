"""Make the viewer of a volume for an HTML page: compressed slices in three planes."""
import base64
import html
import io
import json

import numpy as np
from PIL import Image

from machine.threads import in_threads
from report.pictures import EDGES, PLANES, canonical, middle, plane
from util import tight_box

VOLUME_BYTES = 4_500_000  # largest size of a volume's slices on the page
PAGE_BYTES = 60_000_000  # largest size of all slices of a page; browsers open it without delay
SLICE_QUALITY = 91  # of JPEG; equal WebP takes four times as long, for 1 / 1.7 of the size
THUMBNAIL, THUMBNAIL_QUALITY = 96, 75  # pixels of the longer side (twice the drawn size); quality


def make_viewer(name, images, affine, volumes=1):
    """The data of a viewer: slices of a volume in three planes, as JPEG files in base64.

    The slices are evenly spaced. Their number is limited by VOLUME_BYTES and by the volume's share
    of PAGE_BYTES.

    Parameters
    ----------
    name : str
    images : dict of str to ndarray, shape (X, Y, Z), in [0, 1]
    affine : ndarray, shape (4, 4)
        Only its directions and voxel sizes are used.
    volumes : int, optional
        Number of volumes on the page.

    Returns
    -------
    dict of plain values
    """
    images, sizes = canonical(images, affine)
    # Slices are converted one by one, because whole float volumes would need too much memory.
    images = {label: np.stack([np.rint(np.clip(cut, 0, 1) * 255).astype(np.uint8) for cut in image])
              for label, image in images.items()}
    first = next(iter(images.values()))
    cuts, budget = middle(first), min(VOLUME_BYTES, PAGE_BYTES / volumes) / 3
    planes = []
    for axis, used in enumerate(tight_box(first)):
        each = sum(len(encode(plane(image, axis, cuts[axis]))) for image in images.values())
        places = spread(used, int(np.clip(budget / each, 1, used.stop - used.start)))
        rows, columns = plane(first, axis, 0).shape
        across, up = np.delete(sizes, axis)
        planes.append({"name": PLANES[axis], "edges": EDGES[axis], "places": places.tolist(),
                       "of": first.shape[axis],
                       "start": int(np.abs(places - cuts[axis]).argmin()),
                       "pixels": (columns, rows),
                       "mm": [round(columns * across, 2), round(rows * up, 2)],
                       "slices": {label: [None] * len(places) for label in images}})

    def encode_slice(task):
        axis, label, n = task
        cut = planes[axis]
        cut["slices"][label][n] = encode(plane(images[label], axis, cut["places"][n]))

    in_threads([(axis, label, n) for axis, cut in enumerate(planes) for label in images
                for n in range(len(cut["places"]))], encode_slice)
    return {"name": name, "kinds": list(images), "planes": planes}


def thumbnail(viewer):
    """A small picture of a volume: the first slice that its viewer shows in the last plane.

    The result is a JPEG file of about 2 kB in base64.
    """
    cut = viewer["planes"][-1]
    shown = cut["slices"][viewer["kinds"][-1]][cut["start"]]
    image = Image.open(io.BytesIO(base64.b64decode(shown)))
    side = THUMBNAIL / max(cut["mm"])
    image = image.resize([max(round(side * length), 1) for length in cut["mm"]],
                         Image.Resampling.LANCZOS)
    return encode(np.asarray(image), THUMBNAIL_QUALITY)


def spread(used, number):
    """Indices of slices, evenly spaced.

    Parameters
    ----------
    used : slice
        The range of slices that are not empty.
    number : int
        Number of slices. If three or more, both ends of the range are included. One or two slices
        avoid the ends, where the slices contain little of the brain.

    Returns
    -------
    ndarray of int

    Examples
    --------
    >>> spread(slice(10, 21), 3), spread(slice(10, 21), 1)
    (array([10, 15, 20]), array([15]))
    """
    if number < 3:
        places = np.linspace(used.start, used.stop - 1, number + 2)[1:-1]
    else:
        places = np.linspace(used.start, used.stop - 1, number)
    return np.unique(places.round().astype(int))


def encode(pixels, quality=SLICE_QUALITY):
    """Encode a slice (uint8, shape (rows, columns)) as a JPEG file in base64."""
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.save(file, "jpeg", quality=quality)
    return base64.b64encode(file.getvalue()).decode()


def viewer_html(number, viewer):
    """The HTML of a viewer from `make_viewer`, the one with this number on its page."""
    name = html.escape(viewer["name"])
    buttons = "".join(
        f'<button type="button" data-kind="{n}" aria-pressed="false"><kbd>{n + 1}</kbd> '
        f'{html.escape(kind)}</button>' for n, kind in enumerate(viewer["kinds"]))
    planes = "".join(plane_html(axis, cut, viewer["kinds"])
                     for axis, cut in enumerate(viewer["planes"]))
    # A label that contains </script> must not end the script element.
    data = json.dumps(viewer["planes"]).replace("<", "\\u003c")
    return (f'<section class="viewer" tabindex="0" id="volume{number}" '
            f'aria-label="viewer of {name}">'
            f'<h3>{name}</h3><div class="bar" role="toolbar">{buttons}'
            '<button type="button" class="difference" aria-pressed="false"><kbd>D</kbd> '
            'difference</button><span class="now" role="status"></span></div>'
            f'<div class="planes">{planes}</div>'
            f'<script type="application/json">{data}</script></section>')


def plane_html(axis, cut, kinds):
    """The HTML of one plane of a viewer: its images on top of each other, and a slider.

    `cut` is a plane of a viewer from `make_viewer`; `kinds` are the labels of its images.
    """
    name, (width, height) = cut["name"], cut["pixels"]
    left, right, top, bottom = cut["edges"]
    layers = "".join(
        f'<img data-kind="{n}" alt="{name} slice, {html.escape(kind)}" width="{width}" '
        f'height="{height}">' for n, kind in enumerate(kinds))
    return (f'<figure style="--w:{cut["mm"][0]};--h:{cut["mm"][1]}">'
            f'<div class="stack" data-axis="{axis}">{layers}'
            f'<i class="l">{left}</i><i class="r">{right}</i>'
            f'<i class="t">{top}</i><i class="b">{bottom}</i></div>'
            f'<figcaption><label>{name} <input type="range" min="0" '
            f'max="{len(cut["places"]) - 1}" value="{cut["start"]}" data-axis="{axis}" '
            f'aria-label="{name} slice"></label><output></output></figcaption></figure>')
