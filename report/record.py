"""The record of a run: what decided a result, as plain values."""
import dataclasses
import importlib.metadata
import platform
from concurrent.futures import ThreadPoolExecutor

from disk.files import file_digest, read_json, write_json, write_whole
from disk.filters import settings_path
from report.pictures import picture_volume
from report.viewer import make_viewer

PACKAGES = ("numpy", "scipy", "numba", "scikit-image", "nibabel")  # may change a result


def about_run(settings, command):
    """Command, settings, the filters' SHA-256 and the versions, as a plain dict."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"command": " ".join(map(str, command)), "settings": dataclasses.asdict(settings),
            "filters": read_json(settings_path(settings))["sha256"],
            "versions": {"python": platform.python_version()} | versions}


def sidecar(path, seconds, settings, command, mask=None):
    """What lies beside a result as JSON: where it came from and how, a dict."""
    masked = {"mask": str(mask), "mask_sha256": file_digest(mask)} if mask else {}
    return {"input": str(path), "input_sha256": file_digest(path), **masked,
            **about_run(settings, command), "seconds": seconds}


def write_beside(path, title, name, found, volumes, settings, command):
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
    settings : Settings
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
        picture = aside.submit(picture_volume, *views, compare=not settings.upscale)
        shown = make_viewer(title, *views, volumes)
        write_whole(name.with_name(f"{name.name}.png"), picture.result())
    write_json(name.with_name(f"{name.name}.json"),
               sidecar(path, found.watch.seconds, settings, command, found.mask))
    return shown
