"""Errors of the commands: a mistake of the user gives one line on standard error and status 2."""
import contextlib
import logging
import os
import signal
import sys
import warnings
from collections import Counter

from machine.remarks import each_once, withheld


class UserError(Exception):
    """An error that the user can correct; it is printed as one line, with exit status 2."""


class CannotWrite(UserError):
    """An error for a full disk, or a folder that is not writable; the whole run ends."""


class FineAlready(UserError):
    """An error for a volume that has the requested voxel size; no fault in a folder."""


def quiet_libraries():
    """Silence messages of nibabel and matplotlib that do no harm.

    They are about unusual header fields, and about missing folders for fonts.
    """
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="nibabel")


def run(command, story, quiet=False):
    """Run ``story()`` and return its exit status; a UserError gives one line and status 2.

    Parameters
    ----------
    command : str
        Name of the script without ``.py``; each printed error begins with this name.
    story : callable
        The work of the script; returns the exit status.
    quiet : bool, optional
        If True, nothing is printed to standard output.
    """
    _open_standard_streams()
    quiet_libraries()
    os.environ["MPLBACKEND"] = "agg"  # notebooks set a backend of theirs, which may be missing here
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a caller may have replaced the stream
            # A file name may contain characters that the terminal cannot show.
            stream.reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError):  # not in the main thread
        # SIGTERM acts like Ctrl-C, so that temporary files are removed.
        signal.signal(signal.SIGTERM, _terminate)
    silence = (
        open(os.devnull, "w", encoding="utf-8") if quiet else contextlib.nullcontext(sys.stdout)
    )
    try:
        with silence as stdout, contextlib.redirect_stdout(Harmless(stdout)), each_once():
            return story()
    except UserError as fault:
        complain(command, f"error: {fault}")
        return 2
    except BrokenPipeError:  # the program that reads the output has ended, such as head
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # shells report this status for a broken pipe
    except OSError as fault:
        complain(command, f"error: {system_fault(fault)}; check that disk or folder")
        return 2
    except MemoryError:
        complain(
            command,
            "error: too little memory; close other programs, take smaller volumes, "
            "or learn with a smaller --filter_len",
        )
        return 2
    except KeyboardInterrupt as stop:
        complain(command, "stopped")
        return 143 if isinstance(stop, _Terminated) else 130


class _Terminated(KeyboardInterrupt):
    """The exception of SIGTERM."""


def _terminate(number, frame):
    raise _Terminated


def _open_standard_streams():
    """Replace standard streams that are closed, as some job schedulers do, by the null device.

    Otherwise the next opened file takes a closed stream's number, and messages go into this file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: that of this stream
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))


@contextlib.contextmanager
def blamed_on(item):
    """A context that turns an error of the file system into a UserError that names the volume.

    A disk may be unmounted or a file moved during the work; other volumes are then still processed.

    Parameters
    ----------
    item : path-like, or an object with an attribute `path`

    Raises
    ------
    UserError
        Instead of the OSError.
    """
    try:
        yield
    except BrokenPipeError:  # an error of standard output, not of the volume
        raise
    except OSError as fault:
        path, other = getattr(item, "path", item), fault.filename
        where = "" if other is None or str(other) == str(path) else f"{other} "
        raise UserError(f"{path}: {where}cannot be read ({fault.strerror or first_line(fault)}); "
                        "check that disk or folder, then run the command again") from fault


def complain(command, text):
    """Print one line to standard error."""
    said = f"{command}.py: {one_line(text)}"
    if not withheld(said, "stderr"):
        print(said, file=sys.stderr, flush=True)


def one_line(text):
    """A text as one line for any terminal; unprintable characters become escapes such as \\n."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in str(text)
    )


def short(name, most=32):
    """A name as one line of at most `most` characters; it is cut in the middle, not at the end.

    Examples
    --------
    >>> short("sub-01_ses-01_acq-mprage_run-2_T1w.nii.gz")
    'sub-01_s..prage_run-2_T1w.nii.gz'
    """
    line = one_line(name)
    return line if len(line) <= most else f"{line[:most // 4]}..{line[most // 4 + 2 - most:]}"


def short_names(names):
    """A short name by `short` for each of `names`; the whole name if two short names are equal.

    Examples
    --------
    >>> short_names(["sub-00001/anat/T1w_acquired_twice.nii", "a.nii"])["a.nii"]
    'a.nii'
    >>> names = [f"sub-{number:05}/anat/T1w_acquired_twice.nii" for number in range(2)]
    >>> list(short_names(names).values()) == names
    True
    """
    times = Counter(map(short, names))
    return {name: short(name) if times[short(name)] == 1 else one_line(name) for name in names}


class Harmless:
    """A text stream that shows escape sequences instead of sending them to the terminal.

    A data set may contain file names with escape sequences, which could control the terminal.

    Parameters
    ----------
    stream : text stream
    """

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        """Write a text of one or several lines."""
        return self._stream.write("\n".join(map(one_line, text.split("\n"))))

    def __getattr__(self, name):
        return getattr(self._stream, name)


def system_fault(fault):
    """The file and the reason of an error of the file system, as text."""
    return f"{fault.filename or 'files'}: {fault.strerror or fault}"


def first_line(fault):
    """The first line of an exception's message, or the name of its class if there is none."""
    return (str(fault).splitlines() or [type(fault).__name__])[0]
