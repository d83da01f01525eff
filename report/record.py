"""The record of a run: what decided a result, as plain values."""
import dataclasses
import importlib.metadata
import platform
import shlex
from concurrent.futures import ThreadPoolExecutor

from disk.files import file_digest, write_json, write_whole
from report.pictures import picture_volume
from report.viewer import make_viewer

PACKAGES = ("numpy", "scipy", "numba", "scikit-image", "nibabel")  # may change a result


def about_run(settings, command, steps=()):
    """What was run and with what, as a plain dict.

    Parameters
    ----------
    settings : Settings
    command : list of str
        What the user typed.
    steps : sequence of dict
        As `steps_of` gives them, of all filters that were used.

    Returns
    -------
    dict
        Command, settings, the filters' SHA-256 by file name, and versions. Where several sets of
        filters were used, also the factor and what each was learned with, as "steps".
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    filters = {name: digest for step in steps for name, digest in step["filters"].items()}
    return {"command": shlex.join(map(str, command)), "settings": dataclasses.asdict(settings),
            "filters": filters, **({"steps": steps} if len(steps) > 1 else {}),
            "versions": {"python": platform.python_version()} | versions}


def steps_of(uses):
    """What filters were used, one set after another.

    Parameters
    ----------
    uses : list of restoring.Use

    Returns
    -------
    list of dict
        The factor along the volume's axes, the filters' SHA-256, and what they were learned with.
    """
    return [{"factor": list(use.factor), "filters": use.digests or {},
             "learned_with": use.settings.of_groups("method", "learning")} for use in uses]


def sidecar(path, found, command):
    """What lies beside a result as JSON: where it came from and how, a dict."""
    mask = found.mask
    masked = {"mask": str(mask), "mask_sha256": file_digest(mask)} if mask else {}
    return {"input": str(path), "input_sha256": file_digest(path), **masked,
            **about_run(found.settings, command, steps_of(found.uses)),
            "seconds": found.watch.seconds}


def write_beside(path, title, name, found, volumes, command):
    """Write the picture and the JSON record of a restored volume.

    Parameters
    ----------
    path : Path
        Of its input.
    title : str
        What it is called on the page.
    name : Path
        Of the two files, without their endings.
    found : restoring.Restored
    volumes : int
        How many the page will show.
    command : list of str
        What the user typed.

    Returns
    -------
    dict
        Its viewer, for the page.
    """
    views = found.images, found.affine
    with found.watch("picture and viewer"), ThreadPoolExecutor(1) as aside:
        # One draws while the other packs slices.
        picture = aside.submit(picture_volume, *views, compare=not found.settings.upscale)
        shown = make_viewer(title, *views, volumes)
        write_whole(name.with_name(f"{name.name}.png"), picture.result())
    write_json(name.with_name(f"{name.name}.json"),
               sidecar(path, found, command))
    return shown
