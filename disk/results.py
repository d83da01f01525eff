"""The folder for the results of a run, and checks that test.py replaces only files that it wrote.

No run writes into the folder of another run that was finished. An interrupted run leaves a record
in its folder. By this record, the same command finds the folder again and continues. A run locks
its record while it works.
"""
import contextlib
import csv
import itertools
import json
import os
import time
from collections import Counter
from pathlib import Path

from disk.files import file_digest, make_folder, read_json, remove_unfinished, stem, write_json
from disk.locks import holds_lock, only_one_in
from machine.errors import CannotWrite, UserError, complain
from machine.sources import all_sources, digest_of

MADE_BY = "3D MRI super-resolution by learned filters"  # mark in pictures and pages of test.py
UNFINISHED = ".unfinished.json"  # record of a run until the run is finished
VIEWERS = ".viewers"  # folder for data of the run's page, removed when the page is written
HEAD_BYTES = 4096  # number of bytes at the start of a file that are searched for MADE_BY
# Settings without effect on the results.
NOT_OF_RESULTS = {"quiet", "device", "scheduler", "tls"}
PATHS = ("test_dir", "arrays_dir", "result_dir", "output")  # absolute on a cluster


# ------------------------------------------------------------------------------------- whose folder

@contextlib.contextmanager
def run_folder(request, volumes, filters):
    """A context that gives the folder for results: that of --output, or one named after the hour.

    If another run made the folder of this hour, a new folder with a number is made (``112522-2``,
    ``112522-3`` ...). The command of an interrupted run continues in the folder of that run, also
    in a later hour.

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
    """
    if request.output:
        target = Path(request.output)
        remove_unfinished(target.parent, names_beside(target), running=False)
        yield target.parent
        return
    hour = Path(request.result_dir, time.strftime("%m%d%H"))
    about = _about(request, volumes, filters)
    new = not hour.parent.exists()
    make_folder(hour.parent)
    numbered = (hour.with_name(f"{hour.name}-{number}") for number in itertools.count(2))
    folders = itertools.chain(_interrupted(hour.parent), [hour], numbered)
    folder, record = next((folder, record) for folder in folders
                          if (record := _taken(folder, about)))
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


def names_beside(target):
    """Names of all files that a run with --output may write."""
    bare = sidecar_names([target])[0].name
    return [target.name, f"{bare}.png", f"{bare}.json", f".{bare}.json", "report.html",
            "metrics.csv"]


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


# --------------------------------------------------------------------------------------- whose file

def check_beside(folder, names, request):
    """Raise UserError if a run would replace a file that test.py did not write.

    Parameters
    ----------
    folder : Path
        Folder of the results.
    names : list of Path
        Names of the files beside each result, without their endings; see `sidecar_names`.
    request : Request

    Raises
    ------
    UserError
        For the first file that was not written by test.py.
    """
    wanted = [] if request.upscale else [folder / "metrics.csv"]
    if request.report:
        wanted.append(folder / "report.html")
    for name in names:
        picture, record, _ = names_of_sidecars(name, request.report)
        wanted += [picture, record] if request.report else [record]
        if request.report and request.upscale and len(names) > 1:
            wanted.append(own_page(name))
    if request.output:
        _check_output(Path(request.output), names[0], request)
    for path in wanted:
        if os.path.lexists(path) and not is_ours(path):
            remedy = "move it, or give another --output or --result_dir"
            if path.name != "metrics.csv":
                remedy += ", or --no-report"
            raise UserError(f"{path}: exists already and was not written by test.py, which "
                            f"would replace it; {remedy}")


def _check_output(path, name, request):
    """Raise an error if --output is not writable, or would replace a file that it must not.

    That is a file that test.py did not write, or the record of a result with the other ending. A
    message is printed if the result of another input will be replaced. `name` is the common name of
    the files beside the output, without their endings.
    """
    if path.is_dir():
        raise UserError(f"argument --output: {path} is a folder; name a file in it, such as "
                        f"{path / 'fine.nii.gz'}")
    if not request.overwrite:
        _check_replaced(path, name, request.test_dir)
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise CannotWrite(f"{path}: cannot be written, since {above} is no folder that takes "
                          "files; give another --output")


def _check_replaced(path, name, test_dir):
    """The part of `_check_output` about existing files, without --overwrite."""
    packed = path.name.lower().endswith(".gz")
    other = path.with_name(f"{stem(path)}{'.nii' if packed else '.nii.gz'}")
    with only_one_in(path.parent):  # another run may be replacing volume and record
        there, record, beside = os.path.lexists(path), _record_of(path, name), _record_of(
            other, name)
    remedy = "move it, give another --output, or add --overwrite to replace it"
    if there and record is None:
        raise UserError(f"{path}: exists already, and no record beside it holds its digest: "
                        f"test.py did not write it, or it was changed since; {remedy}")
    if record and not _is_made_from(record, Path(test_dir)):
        complain("test", f"{path}: it was made from {record['input']}, and is replaced by a "
                 "result from another input")
    if beside:
        raise UserError(f"{other}: exists already, and its record would be replaced by that of "
                        f"{path.name}; {remedy}")


def _record_of(path, name):
    """The record beside a volume, visible or hidden, that holds its digest; None without one."""
    for report in (True, False):
        with contextlib.suppress(OSError, ValueError):
            about = read_json(names_of_sidecars(name, report)[1])
            if about.get("result_sha256") == file_digest(path):
                return about
    return None


def _is_made_from(record, given):
    """True if the input of a record is a file, or in a folder, or has the content of the file."""
    made_from = Path(os.path.realpath(record.get("input", "")))
    given = Path(os.path.realpath(given))
    if given == made_from or given in made_from.parents:
        return True
    with contextlib.suppress(OSError):
        return record.get("input_sha256") == file_digest(given)
    return False


def names_of_sidecars(name, report):
    """Names of the files beside a result.

    Parameters
    ----------
    name : Path
        A name from `sidecar_names`.
    report : bool
        The option --report. With --no-report, the record is a hidden file, and there is no
        picture.

    Returns
    -------
    picture, record : Path
    others : list of Path
        Files that a run with the opposite value of --report writes.
    """
    picture, shown, hidden = (name.with_name(text.format(name.name))
                              for text in ("{}.png", "{}.json", ".{}.json"))
    return (picture, shown, [hidden]) if report else (picture, hidden, [picture, shown])


def own_page(name):
    """Path of the page of one of several upscaled volumes; `name` is from `sidecar_names`."""
    return name.with_name(f"{name.name}.html")


def sidecar_names(targets):
    """Names of the files that lie beside results (picture, JSON), without their endings.

    Parameters
    ----------
    targets : list of Path
        The results.

    Returns
    -------
    list of Path
        The name of each result without .nii or .nii.gz. The ending is kept if the name is that of
        another result, with or without its ending, or that of the run's page (report).

    Examples
    --------
    >>> [path.name for path in sidecar_names([Path("a.nii"), Path("b.nii"), Path("b.nii.gz")])]
    ['a', 'b.nii', 'b.nii.gz']
    """
    plain = [target.with_name(stem(target)) for target in targets]
    times = Counter([*plain, *targets])
    return [target if times[name] > 1 or name.name.lower() == "report" else name
            for target, name in zip(targets, plain, strict=True)]


def is_ours(path):
    """True if the content of a picture, page, record or table shows that test.py wrote it.

    False also if the file cannot be read.
    """
    try:
        if path.suffix == ".json":
            return {"input_sha256", "filters", "settings"} <= set(read_json(path))
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return False
    if path.suffix == ".csv":
        columns = next(csv.reader(head.decode(errors="replace").splitlines()), [])
        return columns[:1] == ["volume"] and any(name.startswith("gain_") for name in columns)
    return MADE_BY.encode() in head
