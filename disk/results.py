"""Names of the files of a run, and checks that test.py replaces only files that it wrote."""
import contextlib
import csv
import os
from collections import Counter
from pathlib import Path

from disk.files import file_digest, read_json, stem
from disk.locks import only_one_in
from machine.errors import CannotWrite, UserError, complain

MADE_BY = "3D MRI super-resolution by learned filters"  # mark in pictures and pages of test.py
VIEWERS = ".viewers"  # folder for data of the run's page; kept with --into
HEAD_BYTES = 4096  # number of bytes at the start of a file that are searched for MADE_BY
PATHS = ("test_dir", "arrays_dir", "result_dir", "into", "output")  # absolute on a cluster


def names_beside(target):
    """Names of all files that a run with --output may write."""
    bare = sidecar_names([target])[0].name
    return [target.name, f"{bare}.png", f"{bare}.json", f".{bare}.json", f"{bare}.html",
            "metrics.csv"]


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
        wanted.append(page_of(folder, names, request))
    for name in names:
        picture, record, _ = names_of_sidecars(name, request.report)
        wanted += [picture, record] if request.report else [record]
        if request.report and has_own_pages(names, request):
            wanted.append(own_page(name))
    if request.output:
        _check_output(Path(request.output), names[0], request)
    for path in wanted:
        if os.path.lexists(path) and not is_ours(path):
            remedy = "move it, or give another --output, --into or --result_dir"
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


def check_own(path, name, volume, beside=()):
    """Raise UserError if a file is there that test.py did not make from this volume.

    Parameters
    ----------
    path : Path
        Path of the result.
    name : Path
        Common name of the files beside it, without their endings.
    volume : Path
        Path of the input.
    beside : sequence of Path, optional
        Further files of the result, such as its mask; they are its own if its record is there.
    """
    there = next(filter(os.path.lexists, (path, *beside)), None)
    if there is None:
        return
    record = _record_of(path, name) or _record_of(path, _other_name(path, name))
    if record is None:
        what = "its digest" if there == path else f"the digest of {path.name}"
        raise UserError(f"{there}: exists already, and no record beside it holds {what}: "
                        "test.py did not write it, or it was changed since; move it, give another "
                        "--into, or add --overwrite to replace it")
    if not _is_made_from(record, volume):
        raise UserError(f"{path}: was made from {record['input']}, not from {volume}; give another "
                        "--into, or add --overwrite to replace it")


def under_other_name(path, name):
    """Files beside a result from a run that named them with its ending, or now without it.

    `sidecar_names` depends on the other volumes of a run. Only files that test.py wrote are listed.
    """
    other = _other_name(path, name)
    if _record_of(path, other) is None:
        return []
    picture, record, others = names_of_sidecars(other, report=True)
    return [each for each in (picture, record, *others, own_page(other)) if is_ours(each)]


def _other_name(path, name):
    """The name that `sidecar_names` gives to files beside a result in other circumstances."""
    return path.with_name(stem(path)) if name == path else path


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
    return (picture, shown, [hidden]) if report else (
        picture, hidden, [picture, shown, own_page(name)])


def own_page(name):
    """Path of the page of one volume; `name` is from `sidecar_names`."""
    return name.with_name(f"{name.name}.html")


def has_own_pages(names, request):
    """True if each upscaled volume has its own page, and the page of the run is a table."""
    return request.upscale and (len(names) > 1 or bool(request.into))


def page_of(folder, names, request):
    """Path of the page of a run: that of the volume with --output, otherwise report.html."""
    return own_page(names[0]) if request.output else Path(folder, "report.html")


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
