"""Do all work of test.py on one volume, in one function that can run on a worker of a cluster.

The volume is restored or upscaled, and written with its picture and its record. All these files get
their names together, so a record never lies beside the result of another run.
"""
import dataclasses
from pathlib import Path
from typing import NamedTuple

from disk.files import make_folder, whole_files, write_json
from disk.results import check_own, is_ours, names_of_sidecars, under_other_name
from filter_constant import Method
from machine.errors import one_line
from machine.remarks import noting
from nifti.bids import copy_gradients, makes_derivatives, more_of_result, sidecar_of
from nifti.volumes import relative_name
from report.record import about_volume, finished, write_beside, write_own_page, write_record
from restoring.steps import restore_file
from restoring.upscaling import STEPS, upscale_file


class Job(NamedTuple):
    """A volume to restore, and the paths of its results."""

    path: Path
    target: Path  # path of the result
    name: Path  # path of picture and record, without extensions
    shown: bool = True  # True if a page has a viewer of this volume
    # File for the viewer or thumbnail, until the page of the run is written. None: kept in memory.
    viewer: Path | None = None
    page: Path | None = None  # page of this volume alone; None if the page of the run shows it
    report: Path | None = None  # page of the run, if the volume has its own page
    go_on: bool = False  # True if a result that an earlier run finished is kept


class Done(NamedTuple):
    """The results of a restored volume for the page and the table."""

    row: dict  # see `restoring.steps.Restored`
    # For the page of the run: the viewer, or the thumbnail if the volume has its own page. None
    # without --report, or if `Job.viewer` is the file for it.
    viewer: dict | None
    method: Method  # method of the last filters, with the total factor of all filters
    uses: tuple  # of Filters that restored the volume, without their stages
    missed: int  # number of volumes of a series that could not be restored
    digest: str  # SHA-256 of the result
    before: bool = False  # True if an earlier run had finished this volume


def restore_volume(job, store, volumes, command, engine=None):
    """Restore or upscale a volume, and write its results, except for the page and the table.

    Parameters
    ----------
    job : Job
    store : restoring.steps.FilterStore
    volumes : int
        Number of volumes on the page, which share its size; see `report.viewer.make_viewer`.
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
    if job.go_on and (about := finished(job, title, record, request)):
        return _finished_before(about, store)
    dataset = makes_derivatives(request)
    if request.into:
        if not request.overwrite:
            more = more_of_result(job.path, job.target, request.mask) if dataset else ()
            check_own(job.target, job.name, job.path, more)
        others = [*others, *under_other_name(job.target, job.name)]
    with whole_files() as files, noting() as said:
        if request.upscale:
            found = upscale_file(job.path, job.target, store, engine, files)
        else:
            found = restore_file(job.path, job.target, store.first(), request, engine, files)
        found = found._replace(row=found.row | {"volume": title})
        sidecar = sidecar_of(job.path, request.test_dir, found.row) if dataset else {}
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
        if dataset:
            copy_gradients(job.path, job.target, files)
        # The record is written last, because a volume with a record counts as finished.
        write_record(job.target, record, found, about, digest, files, sidecar)
        for path in filter(is_ours, others):  # files of an earlier run
            files.outdate(path)
    uses = tuple(use._replace(stages=[]) for use in found.uses)
    return Done(found.row, viewer, found.method, uses, found.missed, digest)


def without_name(line, path, title):
    """A message about a volume without its path or name, for a table that has the name.

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
    """Make `Done` from the record of a volume that an earlier run finished."""
    factor = tuple(about["settings"]["factor"])
    factors = [tuple(step["factor"]) for step in about.get("steps", ())] or [factor]
    uses = tuple(store(one)._replace(stages=[]) for one in factors)
    method = dataclasses.replace(uses[-1].method, factor=factor)
    row = about["figures"]
    if store.request.upscale:
        row |= {"seconds": sum(about["seconds"].get(step, 0) for step in STEPS)}
    return Done(row, None, method, uses, about["missed"], about["result_sha256"],
                before=True)
