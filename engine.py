"""Engines: the devices that sum samples, solve for filters and apply filters.

The engine of the CPU is here. The engine of graphics cards is in gpu/compute.py, which is imported
only if a card was found.
"""
import contextlib

import matrix_compute
from machine.errors import UserError
from published import apply_filters


class CPU:
    """The CPU: one volume after another, each step in one thread per core."""

    ahead = 0  # number of volumes that are prepared in memory while another one is summed

    @contextlib.contextmanager
    def place(self):
        """A context that gives an object with the method `add`, to sum a volume."""
        yield self

    def add(self, gram, drawn, method, advance=lambda samples: None):
        """Add a volume's samples to the Gram matrices.

        Parameters
        ----------
        gram : matrix_compute.Gram
            Changed in place.
        drawn : matrix_compute.TrainingSamples
        method : Method
        advance : callable, optional
            Called repeatedly, with the number of samples added since the last call.
        """
        matrix_compute.sum_rows(gram, drawn.ends, drawn.fill, advance)

    @contextlib.contextmanager
    def settled(self, gram):
        """A context for saving: `gram` holds all volumes that were added, each completely."""
        yield

    ridge_filters = staticmethod(matrix_compute.ridge_filters)
    filter_voxels = staticmethod(apply_filters.filter_voxels)


@contextlib.contextmanager
def demanding_dask():
    """A context for imports of Dask; raises UserError if Dask is not installed."""
    try:
        yield
    except ImportError as fault:
        raise UserError("argument --scheduler: Dask is not installed; "
                        "python -m pip install -r requirements-cluster.txt") from fault


def choose_engine(device, cpu_only="", most=None):
    """Choose an engine; prints one line with the choice and its reason.

    Parameters
    ----------
    device : {"auto", "cpu", "gpu"}
    cpu_only : str, optional
        The reason why only the CPU can be used; empty if there is none.
    most : int, optional
        Largest number of cards to use; by default all are used.

    Returns
    -------
    CPU or gpu.compute.Cards

    Raises
    ------
    UserError
        If --device gpu finds no card.
    """
    if device == "cpu":
        cards, why = [], "requested by --device"
    elif cpu_only:
        cards, why = [], cpu_only
    else:
        # Imported here, so that --device cpu loads nothing of gpu/.
        from gpu.cards import find_cards

        cards, why = find_cards(device, most)
    if not cards:
        print(f"Device: CPU, {why}", flush=True)
        return CPU()
    # Imported here, as above.
    from gpu.compute import Cards

    what = "GPU" if len(cards) == 1 else f"{len(cards)} GPUs"
    print(f"Device: {what}, {why}", flush=True)
    return Cards(cards)
