"""All work of test.py on one volume of a folder, in one function for workers of a cluster.

A volume is restored or upscaled and written. Its picture and its record are written beside it. All
files appear together, so a record never stands beside the result of another run.
"""
import dataclasses
from pathlib import Path
from typing import NamedTuple

from disk.files import make_folder, whole_files, write_json
from disk.results import is_ours, names_of_sidecars
from filter_constant import Method
from machine.errors import one_line
from machine.remarks import noting
from nifti.bids import copy_gradients, makes_derivatives, sidecar_of
from nifti.volumes import relative_name
from report.record import about_volume, finished, write_beside, write_own_page, write_record
from restoring.steps import restore_file
from restoring.upscaling import STEPS, upscale_file


class Job(NamedTuple):
    """A volume to restore, and the paths of its results."""

    path: Path
    target: Path  # path of the result
    name: Path  # path of picture and record, without extensions
    shown: bool = True  # True if the page shows it in a viewer
    # File for the viewer or thumbnail, until the page of the run is written. None: kept in memory.
    viewer: Path | None = None
    page: Path | None = None  # own page with its viewer; None: the page of the run shows the volume
    report: Path | None = None  # page of the run, if the volume has its own page
    go_on: bool = False  # True if a result of the interrupted run is kept


class Done(NamedTuple):
    """The results of a restored volume for the page and the table."""

    row: dict  # figures, or facts about the upscaling
    # For the page of the run: the viewer, or the thumbnail if the volume has its own page. None
    # without --report, or if it is kept in a file.
    viewer: dict | None
    method: Method  # method of the last filters, with the total factor
    uses: tuple  # of Filters, without their stages, that restored the volume
    missed: int  # volumes of a series that could not be restored
    digest: str  # SHA-256 of the result
    before: bool = False  # True if the interrupted run had finished it


def restore_volume(job, store, volumes, command, engine=None):
    """Restore or upscale a volume, and write its results, except for the page and the table.

    Parameters
    ----------
    job : Job
    store : restoring.steps.FilterStore
    volumes : int
        Number of volumes that share the page's slices, see `report.viewer.make_viewer`.
    command : list of str
        The command line of the user, for the record.
    engine : engine.CPU or its like, optional

    Returns
    -------
    Done

    Raises
    ------
    UserError
        If the file is not a volume to restore, or the result cannot be written.
    """
    request = store.request
    title, viewer = relative_name(job.path, request.test_dir), None
    picture, record, others = names_of_sidecars(job.name, request.report)
    if job.go_on and (about := finished(job, title, record, request.mask)):
        return _finished_before(about, store)
    with whole_files() as files, noting() as said:
        if request.upscale:
            found = upscale_file(job.path, job.target, store, engine, files)
        else:
            found = restore_file(job.path, job.target, store.first(), request, engine, files)
        found = found._replace(row=found.row | {"volume": title})
        if request.upscale:
            messages = [without_name(line, job.path, title) for line in said]
            found.row["messages"] = list(dict.fromkeys(messages))
        if request.report:
            viewer = write_beside(title, picture, found, volumes if job.shown else 0, files,
                                  compare=not request.upscale)
        digest, about = files.digest(job.target), about_volume(found, request, command)
        if viewer and job.page:
            viewer = write_own_page(job.page, job.report, about, found.row, digest, viewer, files)
        if viewer and job.viewer:
            make_folder(job.viewer.parent)
            write_json(job.viewer, viewer, files)
            viewer = None
        dataset = makes_derivatives(request)
        sidecar = sidecar_of(job.path, request.test_dir, found.row) if dataset else {}
        # The record comes last: with it, an interrupted run counts the volume as finished.
        write_record(job.target, record, found, about, digest, files, sidecar)
        for path in filter(is_ours, others):  # from an earlier run
            files.outdate(path)
    if dataset:
        copy_gradients(job.path, job.target)
    uses = tuple(use._replace(stages=[]) for use in found.uses)
    return Done(found.row, viewer, found.method, uses, found.missed, digest)


def without_name(line, path, title):
    """A message about a volume without the leading names, which a table shows beside it.

    Parameters
    ----------
    line : str
    path : Path
        Path of the volume.
    title : str
        Name of the volume in figures.

    Examples
    --------
    >>> without_name("test.py: low/a.nii: is a series", Path("low/a.nii"), "a.nii")
    'is a series'
    """
    line = line.removeprefix("test.py: ")
    for name in (path, title):
        line = line.removeprefix(f"{one_line(name)}: ")
    return line


def _finished_before(about, store):
    """`Done` for a volume that an interrupted run finished, from its record."""
    factor = tuple(about["settings"]["factor"])
    factors = [tuple(step["factor"]) for step in about.get("steps", ())] or [factor]
    uses = tuple(store(one)._replace(stages=[]) for one in factors)
    method = dataclasses.replace(uses[-1].method, factor=factor)
    row = about["figures"]
    if store.request.upscale:
        row |= {"seconds": sum(about["seconds"].get(step, 0) for step in STEPS)}
    return Done(row, None, method, uses, about["missed"], about["result_sha256"],
                before=True)
