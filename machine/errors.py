"""How a command ends: a user's mistake is one line on standard error and exit status 2."""
import contextlib
import logging
import os
import signal
import sys
import warnings

from machine.remarks import each_once, withheld


class UserError(Exception):
    """A fault that the user can mend: printed as one line, exit status 2."""


class CannotWrite(UserError):
    """A folder that takes no files, or a full disk: no use in going on to the next volume."""


def quiet_nibabel():
    """Not a word of nibabel about odd header fields that do no harm: for commands, and workers."""
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="nibabel")


def run(command, story, quiet=False):
    """Run ``story()``, which gives an exit status; a user's mistake becomes one line and status 2.

    Parameters
    ----------
    command : str
        Name of the script without ``.py``, which the line begins with.
    story : callable
    quiet : bool, optional
        Whether what is printed to standard output is thrown away.
    """
    _open_standard_streams()
    quiet_nibabel()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream of the caller's own
            # A file name may hold what the terminal cannot show.
            stream.reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError):  # not in the main thread
        # So that temporary files are removed.
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
    except BrokenPipeError:  # whoever read the output has had enough, as with | head
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what shells report for it
    except OSError as fault:
        what = f"{fault.filename or 'files'}: {fault.strerror or fault}"
        complain(command, f"error: {what}; see to that disk or folder")
        return 2
    except MemoryError:
        complain(
            command,
            "error: too little memory; close other programs, or take smaller volumes "
            "or learn with a smaller --filter_len",
        )
        return 2
    except KeyboardInterrupt:
        complain(command, "stopped")
        return 130


def _open_standard_streams():
    """Have what is said go nowhere where a standard stream was closed, as some schedulers do.

    Else the next file that is opened takes its number, and messages would be written into it.
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
    """Inside, an error of the file system is a fault of this volume: the others are still done.

    Its disk may be unmounted, or its file moved away, while it is worked on.

    Parameters
    ----------
    item : path-like, or what has one as its `path`

    Raises
    ------
    UserError
        In place of the OSError.
    """
    try:
        yield
    except BrokenPipeError:  # standard output, which is no file of the volume
        raise
    except OSError as fault:
        path, other = getattr(item, "path", item), fault.filename
        where = "" if other is None or str(other) == str(path) else f"{other} "
        raise UserError(f"{path}: {where}cannot be read ({fault.strerror or first_line(fault)}); "
                        "see to that disk or folder, then run the command again") from fault


def complain(command, text):
    """One line on standard error."""
    said = f"{command}.py: {one_line(text)}"
    if not withheld(said, "stderr"):
        print(said, file=sys.stderr, flush=True)


def one_line(text):
    """A text in one line that any terminal can show, whatever a file name in it holds."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in str(text)
    )


class Harmless:
    """A text stream that shows escape sequences instead of sending them to the terminal.

    Names of files come with a data set, and what they hold could set the terminal's title or worse.

    Parameters
    ----------
    stream : text stream
    """

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        """Write a text, of several lines perhaps."""
        return self._stream.write("\n".join(map(one_line, text.split("\n"))))

    def __getattr__(self, name):
        return getattr(self._stream, name)


def first_line(fault):
    """The first line of what an exception says, or its class where it says nothing."""
    return (str(fault).splitlines() or [type(fault).__name__])[0]
