"""Training that survives: its sums are kept on disk.

``arrays/QVF_2/`` (of a stage: ``arrays/QVF_2_stage1/``) holds what was summed so far: a ledger
(`learning.ledger`) in ``about.json``, and files of sums (`learning.sums`), ``sums_<n>.npy``. Each
file is complete in itself and replaced whole, one after another: a kill between two leaves some
buckets one volume ahead of others, and the next run gives each bucket the volumes that it still
lacks, in the same order. So a checkpoint takes hardly more disk than it holds, and several passes
need nothing of their own.
"""
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from disk.files import make_folder
from learning.ledger import Ledger
from learning.sums import SumFiles, buckets_per_file
from matrix_compute import Gram

# A checkpoint is written no sooner than this many times the seconds that the last one took.
WRITE_SHARE = 10


class Sums(NamedTuple):
    """What a checkpoint holds sums for."""

    folder: str  # under arrays/
    # From a dict of lists to what sorts voxels into buckets; ValueError where it is none.
    read: Callable
    layout: Callable  # from that to the number of buckets, and of taps
    after: str = ""  # identifies what was learned before these sums


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
        How the training was begun, and which volumes are in which buckets.
    """

    def __init__(self, request, sums):
        self.request, self.sums = request, sums
        self.folder = Path(request.arrays_dir, sums.folder)
        self.ledger = Ledger(self.folder, request, sums)
        self.saved_at, self.took = time.monotonic(), 0.0

    # ---- to and from disk

    @property
    def files(self):
        """The files of sums, once a training was begun or found."""
        ledger = self.ledger
        return SumFiles(self.folder, ledger.key, ledger.buckets, ledger.taps, ledger.step)

    def find(self):
        """Read what an earlier run left.

        Returns
        -------
        bool
            Whether there is anything.

        Raises
        ------
        UserError
            If it was made with other settings, or is damaged.
        """
        ledger = self.ledger
        if not ledger.path.exists():
            return False
        if not ledger.read():  # the stage before was learned from more volumes since
            self.clear()
            return False
        for start in ledger.starts:
            ledger.kept[start] = self.files.volumes(start)
            ledger.finished[start] = list(ledger.kept[start])
        return True

    def clear(self):
        """Forget what an earlier run left."""
        if self.folder.is_dir():
            for path in [self.ledger.path, *self.folder.glob("sums_*.npy")]:
                path.unlink(missing_ok=True)

    def begin(self, classes, sources):
        """Start a checkpoint.

        Parameters
        ----------
        classes : Boundaries or Tree
            What sorts voxels into buckets.
        sources : list of Finished
            The volumes that this was found from.

        Raises
        ------
        CannotWrite
            If the disk refuses.
        """
        self.clear()
        make_folder(self.folder)
        self.ledger.begin(classes, sources, buckets_per_file(*self.sums.layout(classes)))

    def load(self, buckets):
        """The sums of a range of buckets, as far as they were saved.

        Parameters
        ----------
        buckets : range
            Of whole files.

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
        """Whether it is time to save.

        That is after --checkpoint_minutes, and not while saving takes a tenth of the time.
        """
        wait = max(60 * self.request.checkpoint_minutes, WRITE_SHARE * self.took)
        return time.monotonic() - self.saved_at >= wait

    def save(self, gram, advance=lambda buckets: None):
        """Write the sums that are ahead of their file.

        Parameters
        ----------
        gram : Gram
            Of whole files.
        advance : callable, optional
            Told of each bucket that is written.

        Returns
        -------
        int
            Bytes written.

        Raises
        ------
        CannotWrite
            If there is too little space, or the disk refuses. The files before stay.
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
        """Saving failed: try again after the usual time."""
        self.saved_at = time.monotonic()

    def groups(self, passes, gram=None):
        """The sums of each pass in turn, as often as they are asked for.

        Parameters
        ----------
        passes : list of range
            Of buckets.
        gram : Gram, optional
            Where all are in memory already.

        Returns
        -------
        iterable of Gram
        """
        if gram is not None and len(passes) == 1:
            return [gram]
        return _LoadedInTurn(self, passes)


class _LoadedInTurn:
    """Sums that do not fit into memory together: each is loaded when it is its turn."""

    def __init__(self, checkpoint, passes):
        self.checkpoint, self.passes = checkpoint, passes

    def __iter__(self):
        for buckets in self.passes:
            gram = self.checkpoint.load(buckets)
            yield gram
            gram.packed = gram.count = None  # whoever still holds it does not hold its memory
