"""The folder for the results of a run.

A run without --into writes into a new folder, and never into that of a run that was finished. An
interrupted run leaves a record in its folder. By this record, the same command finds the folder
again and continues. A run locks its record while it works.
"""
import contextlib
import itertools
import json
import os
import time
from pathlib import Path

from disk.files import make_folder, read_json, remove_unfinished, write_json
from disk.locks import holds_lock, only_one_in
from disk.results import PATHS, names_beside
from filter_constant import OPTION
from machine.errors import CannotWrite, UserError, complain
from machine.option_fields import flag_of
from machine.sources import all_sources, digest_of

UNFINISHED = ".unfinished.json"  # record of a run until the run is finished
MADE_WITH = ".made_with.json"  # settings and filters of all results in a folder of --into
# Settings without effect on the results.
NOT_OF_RESULTS = {"quiet", "device", "scheduler", "tls", "overwrite"}


@contextlib.contextmanager
def run_folder(request, volumes, filters):
    """A context that gives the folder for results: that of --output or --into, or one of the hour.

    If another run made the folder of this hour, a new folder with a number is made (``112522-2``,
    ``112522-3`` ...). The command of an interrupted run continues in the folder of that run, also
    in a later hour. A folder of --into is taken by each run with the same settings and filters.

    Parameters
    ----------
    request : Request
    volumes : list of Path
        Volumes to restore.
    filters : dict
        SHA-256 of the files of filters, by file name.

    Yields
    ------
    Path
        The folder; it is removed at the end if nothing was written into it.

    Raises
    ------
    CannotWrite
        If the folder cannot be made.
    UserError
        If a folder of --into has results of other settings, or another run writes into it.
    """
    if request.output:
        target = Path(request.output)
        remove_unfinished(target.parent, names_beside(target), running=False)
        yield target.parent
        return
    if request.into:
        with _named_folder(Path(request.into), _about(request, volumes, filters)) as folder:
            yield folder
        return
    hour = Path(request.result_dir, time.strftime("%m%d%H"))
    about = _about(request, volumes, filters)
    new = not hour.parent.exists()
    make_folder(hour.parent)
    numbered = (hour.with_name(f"{hour.name}-{number}") for number in itertools.count(2))
    folders = itertools.chain(_interrupted(hour.parent), [hour], numbered)
    folder, record = next((folder, record) for folder in folders
                          if (record := _taken(folder, about)))
    _say_of_others(hour.parent, about, folder)
    done = False
    try:
        yield folder
        done = True
    finally:
        record.close()  # Windows cannot remove an open file
        if done:
            (folder / UNFINISHED).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a parent folder may hold other results
            if {path.name for path in folder.iterdir()} <= {UNFINISHED}:
                (folder / UNFINISHED).unlink(missing_ok=True)
                folder.rmdir()
                if new:
                    hour.parent.rmdir()


@contextlib.contextmanager
def _named_folder(folder, about):
    """A context that gives the folder of --into, locked, if its results were made in the same way.

    `about` is from `_about`.
    """
    path, new = folder / MADE_WITH, not folder.exists()
    made = {"filters": about["filters"], "program": about["program"], "settings": {
        name: value for name, value in about["settings"].items() if name not in PATHS}}
    make_folder(folder)
    with only_one_in(folder):  # another run may begin in this moment
        first = not path.exists()
        files = _count_below(folder) if first else 0
        if first:
            write_json(path, made)
        try:
            before = read_json(path)
        except ValueError:
            before = {}
        record, alone = open(path, "r+b"), False
        with contextlib.suppress(BlockingIOError):
            alone = holds_lock(record, path)
    try:
        if others := _differences(before, made):
            remedy = "restore all volumes again with another --into"
            if others == ["filters"]:
                remedy = f"name the former ones with --arrays_dir, or {remedy}"
            raise UserError(f"{folder}: its results were made with other {', '.join(others)}; "
                            f"{remedy}")
        if not alone:
            raise UserError(f"{folder}: another run writes into it; wait for its end")
        remove_unfinished(folder, running=False)  # folders of other runs may be below it
        yield folder
    finally:
        record.close()  # Windows cannot remove an open file
        if alone:
            # A run that wrote no result does not decide the settings of later ones.
            with contextlib.suppress(OSError):
                if _count_below(folder) == 1 or first and _count_below(folder) <= files + 1:
                    path.unlink()
                    if new:
                        folder.rmdir()


def _count_below(folder):
    """The number of files in a folder and in its subfolders."""
    return sum(len(names) for _, _, names in os.walk(folder))


def _differences(before, now):
    """The names of the settings that differ, and of filters or program: list of str."""
    old, new = before.get("settings"), now["settings"]
    if not isinstance(old, dict):
        return ["settings"]
    names = [f"--{flag_of(OPTION[name]) if name in OPTION else name}"
             for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    names += ["filters"] * (before.get("filters") != now["filters"])
    return names + ["program code"] * (before.get("program") != now["program"])


def _say_of_others(results, about, folder):
    """Report interrupted runs of the same command with other volumes: they are not continued."""
    for other in _interrupted(results):
        path = other / UNFINISHED
        with contextlib.suppress(OSError, ValueError):
            if other == folder or read_json(path) | {"volumes": []} != about | {"volumes": []}:
                continue
            with open(path, "r+b") as record:
                holds_lock(record, path)  # BlockingIOError if the run still works
                complain("test", f"{other}: a run of the same command was interrupted, but had "
                                 "other volumes, and is not continued; --into adds volumes to a "
                                 "folder")


def _about(request, volumes, filters):
    """The properties by which a run is recognised, in the data types of JSON."""
    decides = {name: value for name, value in request.with_whole_paths(*PATHS).as_dict().items()
               if name not in NOT_OF_RESULTS}
    about = {"settings": decides, "filters": filters, "program": digest_of(all_sources()),
             "volumes": [os.path.abspath(path) for path in volumes]}
    return json.loads(json.dumps(about))


def _interrupted(results):
    """Folders of runs that were not finished, the newest first."""
    found = []
    for path in results.glob(f"*/{UNFINISHED}"):
        with contextlib.suppress(OSError):  # the run has just finished
            found.append((path.stat().st_mtime, path.parent))
    return [folder for _, folder in sorted(found, reverse=True)]


def _taken(folder, about):
    """Take a folder for this run: a new one, or one in which this run was interrupted.

    It returns the record of the run, open and locked, or None if the folder belongs to another run.
    """
    try:
        folder.mkdir()  # fails if another process made it first
    except FileExistsError:
        pass
    except OSError as fault:
        raise CannotWrite(f"{folder}: cannot be made ({fault.strerror}); "
                          "give a --result_dir that can be written") from fault
    else:
        write_json(folder / UNFINISHED, about)
    return _locked_record(folder, about)


def _locked_record(folder, about):
    """The locked record of this interrupted run; None for another run or one still running."""
    path = folder / UNFINISHED
    try:
        if read_json(path) != about:
            return None
        record = open(path, "r+b")
    except (OSError, ValueError):
        return None
    with contextlib.suppress(BlockingIOError):
        if holds_lock(record, path):
            remove_unfinished(folder)  # temporary files, if the run was killed while it wrote
            return record
    record.close()
    return None
