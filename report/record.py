"""The JSON record of a result (input, command, settings, versions), and its picture and page."""
import os
import platform
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from disk.files import file_digest, read_json, write_json, write_whole
from machine.sources import versions_of
from nifti.masks import is_same_input

NOT_ALWAYS = ("steps", "mask", "mask_sha256")  # fields that a record may lack


def about_run(request, method, command, steps=()):
    """Command, settings, filters and versions of a run, as a plain dict.

    Parameters
    ----------
    request : Request
    method : Method
        Method of the filters, with the factor along the volume's axes.
    command : list of str
        The command line.
    steps : sequence of dict
        Result of `steps_of` for all filters that were used.

    Returns
    -------
    dict
        Command, settings, SHA-256 of the files of filters by name, and versions. If filters for
        several factors were used, "steps" holds the factor and the training options of each.
    """
    filters = {name: digest for step in steps for name, digest in step["filters"].items()}
    settings = replace(request, method=method).as_dict()
    return {"command": shlex.join(map(str, command)), "settings": settings,
            "filters": filters, **({"steps": steps} if len(steps) > 1 else {}),
            "versions": {"python": platform.python_version()} | versions_of()}


def steps_of(uses):
    """Descriptions of the filters that were used (list of Filters), in this order: list of dict.

    Each holds the factor along the volume's axes, the SHA-256 of the files, and the training
    options.
    """
    return [{"factor": list(use.factor), "filters": use.digests or {},
             "learned_with": asdict(use.method)} for use in uses]


def about_volume(found, request, command):
    """The result of `about_run` for one restored volume; `found` is `restoring.steps.Restored`."""
    request = replace(request, arrays_dir=found.uses[-1].folder)  # folder of the filters used
    return about_run(request, found.method, command, steps_of(found.uses))


def write_record(target, name, found, about, digest, files, sidecar):
    """Write the JSON record beside a result.

    Parameters
    ----------
    target : Path
        Path of the result.
    name : Path
        Path of the record.
    found : restoring.steps.Restored
    about : dict
        Dict from `about_volume`.
    digest : str
        SHA-256 of the result, by which the result of this record is recognised.
    files : disk.files.WholeFiles
        The files of the result.
    sidecar : dict
        Fields of a BIDS sidecar, written first; empty if the input is not in BIDS.
    """
    figures = {name: value for name, value in found.row.items() if name != "seconds"}
    sidecar = {field: value for field, value in sidecar.items() if field not in NOT_ALWAYS}
    write_json(name, {**sidecar, **found.origin, "result": target.name,
                      "result_sha256": digest, **about, "figures": figures, "missed": found.missed,
                      "seconds": found.watch.seconds}, files)


def finished(job, title, name, request):
    """The record of a result that an earlier run finished from the same input.

    With --into, the earlier run must have had --into too: the settings of others are not compared.

    Parameters
    ----------
    job : whole_volume.Job
    title : str
        Name of the volume in figures.
    name : Path
        Path of the record.
    request : Request

    Returns
    -------
    dict
        None if there is no record, or if result, input or mask have changed since it was written.
    """
    try:
        about = read_json(name)
        same = (about["result"] == job.target.name and about["figures"]["volume"] == title
                and (not request.into or bool(about["settings"]["into"]))
                and is_same_input(about, job.path, request.mask)
                and about["result_sha256"] == file_digest(job.target))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return about if same else None


def write_beside(title, name, found, volumes, files, compare):
    """Write the picture of a restored volume, and make its viewer.

    Parameters
    ----------
    title : str
        Name of the volume on the page.
    name : Path
        Path of the picture.
    found : restoring.steps.Restored
    volumes : int
        Number of volumes that share one page, see `viewer.make_viewer`; 0 if the page does not show
        this volume.
    files : disk.files.WholeFiles
        The files of the result.
    compare : bool
        True if there is an original to compare with.

    Returns
    -------
    dict
        Viewer of the volume, for the page; None if the page does not show the volume.
    """
    # Imported here: matplotlib takes half a second to load, and --no-report does not need it.
    from report.pictures import picture_volume
    from report.viewer import make_viewer

    views = found.images, found.affine
    with found.watch("picture and viewer"), ThreadPoolExecutor(1) as aside:
        # One thread draws the picture while another one encodes slices.
        picture = aside.submit(picture_volume, *views, compare=compare)
        shown = make_viewer(title, *views, volumes) if volumes else None
        write_whole(name, picture.result(), files)
    return shown


def write_own_page(name, report, about, row, digest, viewer, files):
    """Write the page of one of several upscaled volumes, with its viewer.

    Parameters
    ----------
    name : Path
        Path of the page.
    report : Path
        Path of the page of the run, for a link to it.
    about : dict
        Dict from `about_volume`.
    row : dict
        Description of the upscaled volume.
    digest : str
        SHA-256 of the result.
    viewer : dict
    files : disk.files.WholeFiles
        The files of the result.

    Returns
    -------
    dict
        The volume's "thumbnail", for the page of all volumes.
    """
    # Imported here, as above.
    from report.page import make_page
    from report.viewer import thumbnail

    about = about | {"results": {row["volume"]: digest},
                     "report": Path(os.path.relpath(report, name.parent)).as_posix()}
    pieces = make_page(about, [row], [viewer])
    write_whole(name, "".join(pieces), files)
    return {"thumbnail": thumbnail(viewer)}
