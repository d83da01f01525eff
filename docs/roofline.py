"""Print the table of docs/gpu.md: estimated times of a training with 100 volumes on two cards.

    python docs/roofline.py

Bytes and operations are counted from the code in gpu/compute.py. The time of a stage is the longest
of three: its bytes divided by the rate of the card's memory, its bytes on the bus divided by the
rate of the bus, and its operations divided by the arithmetic rate. No figure here was measured.
"""

from typing import NamedTuple

VOLUMES = 100
BOX = 8e6  # voxels of the cropped box of a volume of 260 x 311 x 260 voxels
BRAIN = 4.5e6  # voxels of brain at 0.7 mm; each of them is restored
SAMPLES = BRAIN / 3  # --sample_rate 3
BUCKETS, TAPS = 576, 11**3
SIDE = TAPS + 1
PACKED = SIDE * (SIDE + 1) / 2
BLOCKS = (
    SAMPLES / 1024 + BUCKETS / 2
)  # blocks of samples; the last block of each bucket is half full on average


class Card(NamedTuple):
    name: str
    single: float  # FLOP/s in float32
    double: float  # FLOP/s in float64
    memory: float  # bytes/s
    bus: float  # bytes/s from and to pageable memory: half the rate of PCI Express
    share: float = (
        0.7  # share of the arithmetic rate that matrix products reach; Cholesky factors reach half
    )


CARDS = (
    Card("RTX 2080 Ti, 11 GB", 13.4e12, 0.42e12, 616e9, 6e9),
    Card("A100, 40 GB", 19.5e12, 9.7e12, 1555e9, 12e9),
)


class Stage(NamedTuple):
    name: str
    memory: float = 0  # bytes read and written on the card
    bus: float = 0  # bytes
    single: float = 0  # operations
    double: float = 0
    times: int = 1


STAGES = (
    Stage("LR, HR and voxel positions to the card", bus=BOX * 8 + SAMPLES * 4, times=VOLUMES),
    # Positions of voxels are written and read. Patches are read from the cache, written, read,
    # written into rows, read, and written centred.
    Stage("gather", memory=SAMPLES * TAPS * 4 * 7, times=VOLUMES),
    Stage(
        "products",
        memory=SAMPLES * SIDE * 4 + BLOCKS * SIDE**2 * 4,
        single=2 * SAMPLES * SIDE**2,
        times=VOLUMES,
    ),
    # Lower triangle: positions and products are read, written, read; sums are read and written.
    Stage(
        "sums in float64",
        memory=BLOCKS * PACKED * (4 * 4 + 2 * 8),
        double=BLOCKS * PACKED,
        times=VOLUMES,
    ),
    Stage("sums to main memory, once", bus=BUCKETS * PACKED * 8),
    Stage(
        "solve",
        memory=BUCKETS * SIDE**2 * 8 * 5,
        bus=BUCKETS * PACKED * 8,
        double=BUCKETS * SIDE**3 / 3,
    ),
    # Positions of voxels are written and read. Patches are read from the cache, written, read.
    Stage(
        "apply to one volume",
        memory=BRAIN * TAPS * 4 * 4,
        bus=BOX * 8 + BRAIN * 4,
        single=2 * BRAIN * TAPS,
    ),
)


def seconds(stage, card):
    """Seconds of each resource for all repetitions of a stage: dict by resource."""
    return {
        "bus": stage.bus / card.bus * stage.times,
        "memory": stage.memory / card.memory * stage.times,
        "float32": stage.single / card.single / card.share * stage.times,
        "float64": stage.double / card.double / (card.share / 2) * stage.times,
    }


def rows():
    """The lines of the table, heading included."""
    lines = [
        "| stage | GB on the card | GB over the bus | TFLOP | "
        + " | ".join(card.name for card in CARDS)
        + " |",
        "|---|---|---|---|" + "---|" * len(CARDS),
    ]
    for stage in STAGES:
        cells = []
        for card in CARDS:
            bound, longest = max(seconds(stage, card).items(), key=lambda item: item[1])
            cells.append(f"{longest:.2g} s, {bound}")
        amounts = [stage.memory, stage.bus, (stage.single + stage.double) / 1e3]
        cells = [
            stage.name + f", {stage.times} times" * (stage.times > 1),
            *[number(n * stage.times) for n in amounts],
            *cells,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def number(value):
    """A number in units of 1e9 as text, with two digits."""
    value = float(f"{value / 1e9:.2g}")
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


if __name__ == "__main__":
    print("\n".join(rows()))
