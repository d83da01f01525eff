"""Where to compute: sums of samples, solving for filters, applying them.

An engine does these three. The CPU's is here; that of graphics cards is gpu/compute.py, imported
only where there may be one.
"""
import contextlib

import matrix_compute
from machine.errors import UserError
from published import apply_filters


class CPU:
    """The CPU, one volume after another, each step in as many threads as there are cores."""

    ahead = 0  # so many more volumes are worked on, and in memory, beside the one whose turn it is

    @contextlib.contextmanager
    def place(self):
        """Where a volume can be summed: what has the method `add`."""
        yield self

    def add(self, gram, drawn, method, advance=lambda samples: None):
        """Add a volume's samples to the Gram matrices.

        Parameters
        ----------
        gram : matrix_compute.Gram
            Changed in place.
        drawn : matrix_compute.Drawn
        method : Method
        advance : callable, optional
            Told of the number of samples added, now and then.
        """
        matrix_compute.sum_rows(gram, drawn.ends, drawn.fill, advance)

    @contextlib.contextmanager
    def settled(self, gram):
        """Inside, no volume is half summed, and `gram` has all of those that are."""
        yield

    ridge_filters = staticmethod(matrix_compute.ridge_filters)
    filter_voxels = staticmethod(apply_filters.filter_voxels)


@contextlib.contextmanager
def demanding_dask():
    """Inside, what needs Dask is imported: UserError where it is not installed."""
    try:
        yield
    except ImportError as fault:
        raise UserError("argument --scheduler: Dask is not installed; "
                        "python -m pip install -r requirements-cluster.txt") from fault


def choose_engine(device, cpu_only="", most=None):
    """The engine to work with; says in one line which was taken, and why.

    Parameters
    ----------
    device : {"auto", "cpu", "gpu"}
    cpu_only : str, optional
        Why the CPU must be taken, if it must.
    most : int, optional
        So many cards are enough; by default all are taken.

    Returns
    -------
    CPU or gpu.compute.Cards

    Raises
    ------
    UserError
        If --device gpu finds none.
    """
    if device == "cpu":
        cards, why = [], "as --device asks for"
    elif cpu_only:
        cards, why = [], cpu_only
    else:
        # Here, so that without a card nothing of this room is loaded.
        from gpu.cards import find_cards

        cards, why = find_cards(device, most)
    if not cards:
        print(f"Device: CPU, {why}", flush=True)
        return CPU()
    # Here, as above.
    from gpu.compute import Cards

    what = "GPU" if len(cards) == 1 else f"{len(cards)} GPUs"
    print(f"Device: {what}, {why}", flush=True)
    return Cards(cards)
