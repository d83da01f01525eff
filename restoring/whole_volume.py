"""All that test.py does with one volume of a folder, so that a worker of a cluster can do it too.

A volume is restored or upscaled and written; its picture and its record are written beside. The
three appear together: no record stands beside the result of another run.
"""
import dataclasses
from pathlib import Path
from typing import NamedTuple

from disk.files import make_folder, whole_files, write_json
from disk.results import is_ours, names_of_sidecars
from engine import CPU
from filter_constant import Method
from nifti.volumes import relative_name
from report.record import finished, write_beside, write_record
from restoring.steps import restore_file
from restoring.upscaling import STEPS, upscale_file


class Job(NamedTuple):
    """A volume to restore, and where what comes of it is written."""

    path: Path
    target: Path  # of the result
    name: Path  # of picture and record, without their endings
    shown: bool = True  # in a viewer on the page
    # Where its viewer is kept until the page is written; None: in memory.
    viewer: Path | None = None
    go_on: bool = False  # whether a result of the same run that was interrupted is taken


class Done(NamedTuple):
    """What is left to be shown of a volume that was restored."""

    row: dict  # figures, or what was upscaled
    viewer: dict | None  # for the page; None without --report, or where it is kept in a file
    method: Method  # of the filters, or the last of them
    uses: tuple  # of Filters without their stages: filters that it was restored with
    missed: int  # volumes of a series that could not be restored
    digest: str  # SHA-256 of the result
    before: bool = False  # whether it was finished by the run that was interrupted


def restore_volume(job, store, volumes, command, engine=None):
    """Restore or upscale a volume, and write all that comes of it but the page and the table.

    Parameters
    ----------
    job : Job
    store : restoring.steps.FilterStore
    volumes : int
        How many the page will show in viewers.
    command : list of str
        What the user typed, for the record.
    engine : engine.CPU or its like, optional

    Returns
    -------
    Done

    Raises
    ------
    UserError
        If the file is no volume to restore, or the result cannot be written.
    """
    request, engine = store.request, engine or CPU()
    title, viewer = relative_name(job.path, request.test_dir), None
    picture, record, others = names_of_sidecars(job.name, request.report)
    if job.go_on and (about := finished(job, title, record, request.mask)):
        return _finished_before(about, store)
    with whole_files() as files:
        if request.upscale:
            found = upscale_file(job.path, job.target, store, engine, files)
        else:
            found = restore_file(job.path, job.target, store.first(), request, engine, files)
        found = found._replace(row=found.row | {"volume": title})
        if request.report:
            viewer = write_beside(title, picture, found, volumes if job.shown else 0, files,
                                  compare=not request.upscale)
        if viewer and job.viewer:
            make_folder(job.viewer.parent)
            write_json(job.viewer, viewer, files)
            viewer = None
        digest = write_record(job.target, record, found, request, command, files)
        for path in filter(is_ours, others):  # of an earlier run
            files.outdate(path)
    uses = tuple(use._replace(stages=[]) for use in found.uses)
    return Done(found.row, viewer, found.method, uses, found.missed, digest)


def _finished_before(about, store):
    """What is left to be shown of a volume, from its record."""
    factor = tuple(about["settings"]["factor"])
    factors = [tuple(step["factor"]) for step in about.get("steps", ())] or [factor]
    uses = tuple(store(one)._replace(stages=[]) for one in factors)
    method = dataclasses.replace(uses[-1].method, factor=factor)
    row = about["figures"]
    if store.request.upscale:
        row |= {"seconds": sum(about["seconds"].get(step, 0) for step in STEPS)}
    return Done(row, None, method, uses, about["missed"], about["result_sha256"],
                before=True)
