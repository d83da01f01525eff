"""Errors of commands: a user's mistake gives one line on standard error and exit status 2."""
import contextlib
import logging
import os
import signal
import sys
import warnings
from collections import Counter

from machine.remarks import each_once, withheld


class UserError(Exception):
    """A fault that the user can correct: printed as one line, exit status 2."""


class CannotWrite(UserError):
    """A folder that cannot be written to, or a full disk; no other volume is begun."""


def quiet_nibabel():
    """Silence nibabel's messages about odd header fields that do no harm."""
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="nibabel")


def run(command, story, quiet=False):
    """Run ``story()`` and return its exit status; a user's mistake becomes one line and status 2.

    Parameters
    ----------
    command : str
        Name of the script without ``.py``; the printed line begins with the name.
    story : callable
    quiet : bool, optional
        If True, nothing is printed to standard output.
    """
    _open_standard_streams()
    quiet_nibabel()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream of the caller's own
            # A file name may contain characters that the terminal cannot show.
            stream.reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError):  # not in the main thread
        # SIGTERM acts like Ctrl-C, so that temporary files are removed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    silence = (
        open(os.devnull, "w", encoding="utf-8") if quiet else contextlib.nullcontext(sys.stdout)
    )
    try:
        with silence as stdout, contextlib.redirect_stdout(Harmless(stdout)), each_once():
            return story()
    except UserError as fault:
        complain(command, f"error: {fault}")
        return 2
    except BrokenPipeError:  # the reader of the output has closed it, as with | head
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # the status that shells report for it
    except OSError as fault:
        what = f"{fault.filename or 'files'}: {fault.strerror or fault}"
        complain(command, f"error: {what}; check that disk or folder")
        return 2
    except MemoryError:
        complain(
            command,
            "error: too little memory; close other programs, take smaller volumes, "
            "or learn with a smaller --filter_len",
        )
        return 2
    except KeyboardInterrupt:
        complain(command, "stopped")
        return 130


def _open_standard_streams():
    """Replace closed standard streams by the null device; some schedulers close them.

    Otherwise the next file that is opened takes the number of a closed stream, and gets messages.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))


@contextlib.contextmanager
def blamed_on(item):
    """Inside, an error of the file system becomes a fault of this volume; the other volumes go on.

    Its disk may be unmounted, or its file moved, during the work.

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
    except BrokenPipeError:  # standard output, which is no file of the volume
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
    """A text in one line that any terminal can show, with escapes for unprintable characters."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in str(text)
    )


def short(name, most=32):
    """A name in one line of `most` characters or less, cut in the middle: names differ at the end.

    Examples
    --------
    >>> short("sub-01_ses-01_acq-mprage_run-2_T1w.nii.gz")
    'sub-01_s..prage_run-2_T1w.nii.gz'
    """
    line = one_line(name)
    return line if len(line) <= most else f"{line[:most // 4]}..{line[most // 4 + 2 - most:]}"


def short_names(names):
    """Short names that distinguish all volumes: `short`, or the whole name if two are equal.

    Parameters
    ----------
    names : sequence of str

    Returns
    -------
    dict of str to str

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

    File names come with a data set, and escape sequences in them could control the terminal.

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


def first_line(fault):
    """The first line of an exception's message, or the name of its class if there is none."""
    return (str(fault).splitlines() or [type(fault).__name__])[0]
