"""The record of a run: what decided a result, as plain values."""
import importlib.metadata
import platform
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from disk.files import file_digest, read_json, write_json, write_whole
from machine.errors import UserError
from nifti.masks import find_mask

PACKAGES = ("numpy", "scipy", "numba", "scikit-image", "nibabel")  # may change a result


def about_run(request, method, command, steps=()):
    """What was run and with what, as a plain dict.

    Parameters
    ----------
    request : Request
    method : Method
        Of the filters, its factor along the volume's axes.
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
    settings = replace(request, method=method).as_dict()
    return {"command": shlex.join(map(str, command)), "settings": settings,
            "filters": filters, **({"steps": steps} if len(steps) > 1 else {}),
            "versions": {"python": platform.python_version()} | versions}


def steps_of(uses):
    """What filters were used, one set after another.

    Parameters
    ----------
    uses : list of Filters

    Returns
    -------
    list of dict
        The factor along the volume's axes, the filters' SHA-256, and what they were learned with.
    """
    return [{"factor": list(use.factor), "filters": use.digests or {},
             "learned_with": asdict(use.method)} for use in uses]


def write_record(target, name, found, request, command, files):
    """Write what lies beside a result as JSON: where it came from and how.

    Parameters
    ----------
    target : Path
        Of the result, which was written with `files`.
    name : Path
        Of the record.
    found : restoring.steps.Restored
    request : Request
    command : list of str
        What the user typed.
    files : disk.files.WholeFiles

    Returns
    -------
    str
        SHA-256 of the result: the record is that of this file alone.
    """
    digest = files.digest(target)
    request = replace(request, arrays_dir=found.uses[-1].folder)  # where they were found
    about = about_run(request, found.method, command, steps_of(found.uses))
    figures = {name: value for name, value in found.row.items() if name != "seconds"}
    write_json(name, {**found.origin, "result": target.name, "result_sha256": digest, **about,
                      "figures": figures, "missed": found.missed,
                      "seconds": found.watch.seconds}, files)
    return digest


def finished(job, title, name, pattern):
    """The record of a result that was finished from the same input.

    Parameters
    ----------
    job : whole_volume.Job
    title : str
        What the volume is called.
    name : Path
        Of the record.
    pattern : str
        Of --mask.

    Returns
    -------
    dict
        None where there is none, or where result, input or mask are other files now.
    """
    try:
        about = read_json(name)
        mask = file_digest(find_mask(job.path, pattern)) if pattern else None
        same = (about["result"] == job.target.name and about.get("mask_sha256") == mask
                and about["figures"]["volume"] == title
                and about["input_sha256"] == file_digest(job.path)
                and about["result_sha256"] == file_digest(job.target))
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
    return about if same else None


def write_beside(title, name, found, volumes, files, compare):
    """Write the picture of a restored volume.

    Parameters
    ----------
    title : str
        What it is called on the page.
    name : Path
        Of the picture.
    found : restoring.steps.Restored
    volumes : int
        How many the page will show; 0 where this one is not among them.
    files : disk.files.WholeFiles
        Those of the result.
    compare : bool
        Whether there is an original to compare with.

    Returns
    -------
    dict
        Its viewer, for the page; None where it is not shown.
    """
    # Here: drawing takes half a second to load, which --no-report need not wait for.
    from report.pictures import picture_volume
    from report.viewer import make_viewer

    views = found.images, found.affine
    with found.watch("picture and viewer"), ThreadPoolExecutor(1) as aside:
        # One draws while the other packs slices.
        picture = aside.submit(picture_volume, *views, compare=compare)
        shown = make_viewer(title, *views, volumes) if volumes else None
        write_whole(name, picture.result(), files)
    return shown
