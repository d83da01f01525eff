"""Checkpoints: the sums of a training are kept on disk, so that a stopped training can continue.

The sums are the Gram matrices of all buckets (classes of voxels). ``arrays/QVF_2/`` (for a stage:
``arrays/QVF_2_stage1/``) holds a ledger (`learning.ledger`) in ``about.json``, and files of sums
(`learning.sums`), ``sums_<n>.npy``. Each file holds a range of buckets, and the names of the
volumes in their sums. Files are replaced one after another, each as a whole, so that spare disk
space is needed for one file only. If the program is killed between two files, some buckets contain
one volume more than others; the next run adds to each bucket the volumes that it lacks, in order.
"""
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from disk.files import make_folder
from learning.ledger import Ledger
from learning.sums import SumFiles, buckets_per_file
from matrix_compute import Gram

# Shortest wait between two saves, in multiples of the seconds that the last save took.
WRITE_SHARE = 10


class Sums(NamedTuple):
    """Properties of the stage whose sums a checkpoint holds."""

    folder: str  # subfolder of arrays/
    read: Callable  # read(dict of lists) returns the classes; ValueError if they are damaged
    layout: Callable  # layout(classes) returns the numbers of buckets and of weights per filter
    after: str = ""  # digest of the earlier stages, on which these sums depend


class Checkpoint:
    """The sums of a training on disk.

    Parameters
    ----------
    request : Request
    sums : Sums

    Attributes
    ----------
    folder : Path
    ledger : learning.ledger.Ledger
        Settings of the training, and the volumes in the sums of each bucket.
    """

    def __init__(self, request, sums):
        self.request, self.sums = request, sums
        self.folder = Path(request.arrays_dir, sums.folder)
        self.ledger = Ledger(self.folder, request, sums)
        self.saved_at, self.took = time.monotonic(), 0.0

    # ---- to and from disk

    @property
    def files(self):
        """The files of sums; valid only after `begin` or `find`."""
        ledger = self.ledger
        return SumFiles(self.folder, ledger.key, ledger.buckets, ledger.taps, ledger.step)

    def find(self):
        """Read the checkpoint of an earlier run; True if there is one for this stage.

        It raises UserError if the checkpoint was made with other settings, or is damaged.
        """
        ledger = self.ledger
        if not ledger.path.exists():
            return False
        if not ledger.read():  # the earlier stages were learned again after these sums
            self.clear()
            return False
        for start in ledger.starts:
            ledger.kept[start] = self.files.volumes(start)
            ledger.finished[start] = list(ledger.kept[start])
        return True

    def clear(self):
        """Delete the checkpoint of an earlier run."""
        if self.folder.is_dir():
            for path in [self.ledger.path, *self.folder.glob("sums_*.npy")]:
                path.unlink(missing_ok=True)

    def begin(self, classes, sources):
        """Start a checkpoint; for the parameters and errors see `Ledger.begin`."""
        self.clear()
        make_folder(self.folder)
        self.ledger.begin(classes, sources, buckets_per_file(*self.sums.layout(classes)))

    def load(self, buckets):
        """Load the saved sums of a range of buckets; buckets without saved sums get zeros.

        Parameters
        ----------
        buckets : range
            All buckets of one or more files.

        Returns
        -------
        Gram

        Raises
        ------
        UserError
            If a file is damaged.
        """
        gram = Gram(len(buckets), self.ledger.taps, buckets.start)
        for start in self.ledger.starts_in(buckets):
            self.ledger.finished[start] = list(self.ledger.kept[start])
            self.files.read(start, gram)
        return gram

    def due(self):
        """True if it is time to save.

        The wait is --checkpoint_minutes, but at least WRITE_SHARE times the duration of the last
        save.
        """
        wait = max(60 * self.request.checkpoint_minutes, WRITE_SHARE * self.took)
        return time.monotonic() - self.saved_at >= wait

    def save(self, gram, advance=lambda buckets: None):
        """Write the files of those sums that contain more volumes than their files on disk.

        Parameters
        ----------
        gram : Gram
            Sums of all buckets of one or more files.
        advance : callable, optional
            Called with 1 for each bucket that is written.

        Returns
        -------
        int
            Bytes written.

        Raises
        ------
        CannotWrite
            If there is too little space, or writing fails. The old files stay.
        """
        begun, written = time.monotonic(), 0
        ahead = [start for start in self.ledger.starts_in(gram.buckets)
                 if self.ledger.finished[start] != self.ledger.kept[start]]
        make_folder(self.folder)
        self.files.demand_space(gram, ahead)
        for start in ahead:
            written += self.files.write(start, gram, self.ledger.finished[start], advance)
            self.ledger.kept[start] = list(self.ledger.finished[start])
        self.saved_at = time.monotonic()
        self.took = self.saved_at - begun
        return written

    def postpone(self):
        """Let `due` wait again for the usual time, after a save has failed."""
        self.saved_at = time.monotonic()

    def groups(self, passes, gram=None):
        """The sums of all passes, one pass at a time; they can be iterated more than once.

        Parameters
        ----------
        passes : list of range
            Buckets of each pass.
        gram : Gram, optional
            Sums of the last pass, which are still in memory.

        Returns
        -------
        iterable of Gram
        """
        if gram is not None and len(passes) == 1:
            return [gram]
        return _LoadedInTurn(self, passes)


class _LoadedInTurn:
    """The sums of several passes; each is loaded only when it is needed, to save memory."""

    def __init__(self, checkpoint, passes):
        self.checkpoint, self.passes = checkpoint, passes

    def __iter__(self):
        for buckets in self.passes:
            gram = self.checkpoint.load(buckets)
            yield gram
            gram.packed = gram.count = None  # frees the memory, even if the caller keeps `gram`
