"""Make docs/method.png, a picture of the method: .venv/bin/python docs/method_picture.py

This script generates synthetic brains. The filters and trees are those of pretrained/scan. The
restored slice is the output of both stages; test.py could mix this output with the spline.
"""
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.patheffects import withStroke
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.special import expit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from disk.filters import load_filters  # noqa: E402
from filter_constant import Request  # noqa: E402
from get_lar import make_fine  # noqa: E402
from octahedral import features, scene, stages  # noqa: E402

SHAPE, Z = (96, 112, 80), 40  # shape of a brain, and number of the slice that is drawn
CROP, SIDE = np.array([14, 54]), 44  # corner and side of the drawn square of this slice, voxels
NOISE = 0.03
WIDTH, HEIGHT, BOX, STEP, LEFT, ROWS = 1000, 456, 108, 142, 20, (284, 52)  # pixels at 100 dpi
INK, BLUE, GOLD, PALE, GREY = "#1c2733", "#1f4e79", "#ffb000", "#edf2f7", "#8c8c8c"
TITLES = (
    (("LR scan", "coarse voxels,", "noise"),
     ("Initial estimate", "spline on the", "fine grid"),
     ("Features", "eigenvalues λ₁ λ₂ λ₃,", "direction v"),
     ("Orientation", "patch turned in", "one of 48 ways"),
     ("Leaf of the tree", "voxels with similar", "surroundings"),
     ("Filter of the leaf", "122 weights in 3-D:", "white +, black −"),
     ("Fine voxel", "weighted sum of", "surroundings")),
    (("HR volumes", "originals with", "fine voxels"),
     ("Acquisition", "simulated: blur,", "sample, add noise"),
     ("Pairs", "surroundings a,", "HR voxel b"),
     ("Grouped by leaf", "of a tree grown", "from the pairs"),
     ("Least squares", "one per leaf:", "Q = Σ aaᵀ, V = Σ ab"),
     ("Filters", "and trees, saved", "in arrays/"),
     ("Scan preset", "3 trees averaged,", "in 2 stages")))


def brain(seed):
    """A synthetic brain in [0, 1]: folded grey matter around white matter and ventricles."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")

    def wave(sigma):
        smooth = gaussian_filter(random.standard_normal(SHAPE), sigma, mode="wrap")
        return smooth / smooth.std()

    def within(*ellipsoids):
        return expit((1 - np.min([
            ((abs(x) - across) / a) ** 2 + ((y - along) / b) ** 2 + 11 * z**2
            for across, along, a, b in ellipsoids], 0)) / 0.12)

    radius = np.sqrt((x / 0.86) ** 2 + (y / 0.9) ** 2 + (z / 0.88) ** 2) + 0.02 * wave(12)
    folds = wave(3.6)
    depth = np.abs(folds) / (np.linalg.norm(np.gradient(folds), axis=0) + 0.1)  # from a sulcus
    depth = np.minimum(depth + 40 * np.clip(0.7 - radius, 0, None), 44 * (1 - radius))
    depth = np.minimum(depth, 48 * np.abs(x) + 80 * np.clip(0.55 - np.hypot(y, z), 0, None))
    image = 0.14 + 0.4 * expit((depth - 0.6) / 0.25) + 0.32 * expit((depth - 2.8) / 0.3)
    image += (0.6 - image) * within((0.22, -0.04, 0.13, 0.2), (0.34, 0.14, 0.09, 0.24))
    image += (0.14 - image) * within((0.11, 0.14, 0.07, 0.24), (0.15, -0.24, 0.07, 0.2))
    return (gaussian_filter(image, 0.4) * (radius < 1)).astype(np.float32)


def acquire(hr):
    """A simulated scan in three steps: blurred, then sampled, then with Rician noise."""
    blurred, third = uniform_filter(hr, 2), 3 * (slice(1, None, 2),)
    noise = NOISE * np.random.default_rng(0).standard_normal((2, *blurred[third].shape))
    low = np.hypot(blurred[third] + noise[0], noise[1])
    outline = uniform_filter((hr > 0).astype(np.float32), 2)[third] >= 0.5
    return blurred, blurred[third], (low * outline).astype(np.float32)


def prepare(hr, learned, method):
    """Simulate a scan of a brain on the fine grid, and find each voxel's leaf and orientation."""
    steps = acquire(hr)
    volume = make_fine(steps[-1], method)
    seen = stages.scene_of(volume, volume.lr, method)
    voxels = np.flatnonzero(seen.mask)
    leaf, orientation = features.classify(seen, voxels, learned[0].classes)
    at = np.transpose(np.unravel_index(voxels, seen.mask.shape))
    place = at + [side.start for side in volume.box] - scene.REACH
    return SimpleNamespace(
        hr=hr, steps=steps, volume=volume, estimate=seen.estimate, at=at, place=place,
        leaf=leaf[0], orientation=orientation, target=hr[tuple(place.T)] / volume.scale)


def around(seen, n, displacements, turned=True):
    """The initial estimate around voxels `n`; with `turned`, in the orientation of each voxel."""
    near = scene.turned(displacements)[seen.orientation[n] if turned else 0 * n]
    return seen.estimate[tuple(np.moveaxis(seen.at[n][:, None] + near, -1, 0))]


def square(seen, n, half, turned=True):
    """A square of the initial estimate around one voxel, within the slice."""
    along = np.arange(-half, half + 1)
    plane = np.stack(np.meshgrid(along, along, [0], indexing="ij"), -1).reshape(-1, 3)
    return around(seen, np.array([n]), plane, turned).reshape(len(along), -1)


def example(seen):
    """Choose a voxel at an oblique edge; returns it, its eigenvalues and turned direction."""
    slopes, here = np.gradient(seen.estimate), tuple(seen.at.T)
    near, wide = (np.linalg.eigh(np.moveaxis([[gaussian_filter(a * b, sigma)[here] for a in slopes]
                                              for b in slopes], -1, 0)) for sigma in (0.85, 2))
    v, inner = np.abs(near.eigenvectors[:, :, 2]), seen.place[:, :2] - CROP
    good = (inner > 6).all(1) & (inner < SIDE - 7).all(1) & (seen.place[:, 2] == Z)
    good &= np.isin(seen.orientation, (17, 18)) & (v[:, 2] < 0.2)  # axes exchanged, one flipped
    good &= (v[:, 0] > 0.3 * v[:, 1]) & (v[:, 0] < 0.7 * v[:, 1])
    _, second, first = wide.eigenvalues.T
    n = np.argmax(good * near.eigenvalues[:, 2] * (1 - second / first) ** 3)
    return n, near.eigenvalues[n, ::-1], np.sort(v[n])[::-1]


class Drawing:
    """The figure, drawn in pixels from its lower left corner."""

    def __init__(self):
        self.figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=200, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        for row, (y, titles) in enumerate(zip(ROWS, TITLES)):
            self.axes.add_patch(FancyBboxPatch((12, y - 40), WIDTH - 24, 200, fc=PALE, ec="none",
                                               boxstyle="round,pad=4"))
            self.text(LEFT, y + 142, ("Restoring", "Training")[row], 13, color=BLUE, ha="left",
                      weight="bold")
            for column, (title, *notes) in enumerate(titles):
                x = LEFT + STEP * column
                self.text(x + BOX / 2, y + BOX + 8, title, 10.2, weight="bold")
                for line, note in enumerate(notes):
                    self.text(x + BOX / 2, y - 17 - 16 * line, note)
                if 0 < column < 7 - row:
                    self.arrow((x - STEP + BOX + 6, y + BOX / 2), (x - 6, y + BOX / 2))

    def text(self, x, y, words, size=9.7, **style):
        """Write one line of text."""
        self.axes.text(x, y, words, fontsize=size, **{"ha": "center", "color": INK} | style)

    def arrow(self, start, end, colour=BLUE, **style):
        """Draw an arrow with a filled head."""
        self.axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, lw=2.2,
                                            color=colour, shrinkA=0, shrinkB=0, **style))

    def frame(self, x, y, width, height, edge=INK, line=0.8, face="none", z=3, **style):
        """Draw a rectangle."""
        self.axes.add_patch(Rectangle((x, y), width, height, ec=edge, lw=line, fc=face, zorder=z,
                                      **style))

    def image(self, pixels, x, y, width=BOX, height=None, shown=(0, 1), z=3):
        """Draw a 2-D array in a frame: its first axis to the right, its second upward."""
        height = height or width
        self.axes.imshow(pixels.T, "gray", vmin=shown[0], vmax=shown[1], origin="lower", zorder=z,
                         interpolation="nearest", extent=(x, x + width, y, y + height))
        self.frame(x, y, width, height, z=z)

    def weights(self, weights, taps, x, y, side=BOX):
        """Draw the middle slice of a filter: positive weights white, negative weights black."""
        cube = np.zeros((7, 7, 7))
        cube[tuple(taps.T + 3)] = weights
        cube[3, 3, 3] = 1 - cube.sum()
        self.frame(x, y, side, side, face=GREY)
        for (i, j), weight in np.ndenumerate(cube[:, :, 3]):
            size = min((abs(weight) / 0.5) ** 0.5, 0.94)
            corner = (np.array([i, j]) + 0.5 - size / 2) * side / 7
            self.frame(x + corner[0], y + corner[1], size * side / 7, size * side / 7, "none", 0,
                       "white" if weight > 0 else "black")

    def tree(self, x, y, width, height, way=(), size=1.0):
        """Draw a tree of three levels, and mark the path `way` of a voxel through it."""
        for level in range(4):
            for number in range(2**level):
                on = bool(way) and way[level] == number
                up = [(x + width * (n + 0.5) / 2**k, y + height * (1 - k / 3)) for k, n in (
                    (max(level - 1, 0), number // 2), (level, number))]
                self.axes.plot(*zip(*up), color=BLUE if on else GREY, zorder=3 + on,
                               lw=(3 if on else 1.2) * size)
                self.axes.plot(*up[1], "os"[level == 3], ms=(7 if on else 4) * size, zorder=5 + on,
                               mec=INK, mew=0.8 * size, color=GOLD if on else "white")


def restoring(drawing, seen, learned, method):
    """Draw the upper row, the restoring of one voxel; returns the leaf of this voxel."""
    n, values, turned = example(seen)
    y, taps = ROWS[0], stages.stage_taps(0, method)[0]
    restored = stages.restore_stages(seen.volume, learned, method)
    part = (*(slice(first, first + SIDE) for first in CROP), Z)
    outlined = {"path_effects": [withStroke(linewidth=4, foreground="black")], "zorder": 6}
    for column, volume, half in ((0, np.kron(seen.steps[-1], np.ones((2, 2, 2))), 0),
                                 (1, seen.volume.whole(seen.volume.lr), 4.5),
                                 (6, seen.volume.whole(restored), 2.5)):
        x = LEFT + STEP * column
        drawing.image(volume[part], x, y)
        if half:
            corner = (seen.place[n, :2] - CROP + 0.5 - half) * BOX / SIDE
            size = 2 * half * BOX / SIDE
            drawing.frame(x + corner[0], y + corner[1], size, size, GOLD, 1.6, z=6,
                          path_effects=[withStroke(linewidth=3.4, foreground="black")])
    frame = scene.turned(np.eye(3, dtype=int))[seen.orientation[n]]
    for column, v in ((2, turned @ frame), (3, turned)):
        x, pixels = LEFT + STEP * column, square(seen, n, 4, column == 3)
        drawing.image(pixels, x, y, shown=(pixels.min() - 0.1, pixels.max() + 0.1))
        middle = np.array([x, y]) + BOX / 2
        drawing.axes.add_patch(Ellipse(
            middle, *0.8 * BOX * np.sqrt(np.maximum(values[:2] / values[0], 0.05)), fill=False,
            angle=np.degrees(np.arctan2(v[1], v[0])), ec=GOLD, lw=1.6, **outlined))
        drawing.arrow(middle, middle + 0.4 * BOX * v[:2], GOLD, **outlined)
    drawing.tree(LEFT + 4 * STEP, y + 5, BOX, BOX - 10, (0, 1, 2, 5))
    drawing.weights(learned[0].weights[seen.leaf[n]], taps, LEFT + 5 * STEP, y)
    return seen.leaf[n]


def training(drawing, seen, others, leaf, learned, method):
    """Draw the lower row, the training."""
    places, y, taps = LEFT + STEP * np.arange(7), ROWS[1], stages.stage_taps(0, method)[0]
    random = np.random.default_rng(5)
    for z, hr in enumerate((*others, seen.hr)):
        drawing.image(hr[..., Z], places[0] + 24 - 12 * z, y + 16 - 8 * z, 84, 92, z=3 + z)
    ends = 0, 15, 30, SIDE
    strips = [np.kron(part[..., Z // size], np.ones((size, size)))[CROP[0] + a:CROP[0] + b]
              for part, size, a, b in zip(seen.steps, (1, 2, 2), ends, ends[1:])]
    drawing.image(np.concatenate(strips)[:, CROP[1]:CROP[1] + SIDE], places[1], y)
    for end in ends[1:3]:
        drawing.frame(places[1] + end * BOX / SIDE - 1.5, y, 3, BOX, "none", 0, PALE)
    filled = np.argsort(-np.bincount(seen.leaf))  # leaves, the fullest first
    for row, number in enumerate((leaf, *filled[[2, 8]])):
        below = y + 37.5 * (2 - row)
        n = random.choice(len(seen.leaf))
        drawing.image(square(seen, n, 3), places[2] + 18, below, 33)
        drawing.arrow((places[2] + 57, below + 16.5), (places[2] + 75, below + 16.5), INK)
        drawing.image(seen.target[n:n + 1, None], places[2] + 79, below + 11, 11)
        drawing.frame(places[3], below, BOX, 33, BLUE if row else GOLD, 2, "white")
        for place, n in enumerate(random.choice(np.flatnonzero(seen.leaf == number), 3)):
            drawing.image(square(seen, n, 3), places[3] + 4 + 36.5 * place, below + 3, 27)
    n = np.flatnonzero(seen.leaf == leaf)
    centre = seen.estimate[tuple(seen.at[n].T)]
    a, h = around(seen, n, taps) - centre[:, None], learned[0].weights[leaf]
    for values, left, width, name in ((a.T @ a, 0, 68, "Q"), (h[None], 73, 9, "h"),
                                      ((seen.target[n] - centre)[None] @ a, 99, 9, "V")):
        limit = np.quantile(np.abs(values), 0.98)
        drawing.image(values[:, ::-1], places[4] + left, y + 12, width, 68, (-limit, limit))
        drawing.text(places[4] + left + width / 2, y + 87, name, 11, style="italic")
    drawing.text(places[4] + 90.5, y + 42, "=", 11)
    for place, number in enumerate((leaf, *filled[:8])):
        drawing.weights(learned[0].weights[number], taps, places[5] + place % 3 * 37.5,
                        y + (2 - place // 3) * 37.5, 33)
    drawing.arrow((places[5] + BOX / 2, y + BOX + 24), (places[5] + BOX / 2, ROWS[0] - 38))
    for place in range(6):
        drawing.tree(places[6] + place % 3 * 38, y + 70 - 68 * (place // 3), 32, 36, size=0.6)
    drawing.arrow((places[6] + BOX / 2, y + 64), (places[6] + BOX / 2, y + 42))


def main():
    """Draw both rows and write docs/method.png."""
    learned, method, *_ = load_filters(Request(arrays_dir=str(ROOT / "pretrained" / "scan")))
    drawing = Drawing()
    leaf = restoring(drawing, prepare(brain(1), learned, method), learned, method)
    training(drawing, prepare(brain(0), learned, method), (brain(3), brain(2)), leaf, learned,
             method)
    drawing.axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="auto")
    drawing.axes.set_axis_off()
    drawing.figure.savefig(ROOT / "docs" / "method.png", pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
