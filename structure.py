"""The published and the octahedral method, with one interface for training and restoring.

Both methods learn and restore in stages. A `Stage` sorts voxels into classes and has one filter for
each class. The published method has a single stage; boundaries of its features separate the
classes. The octahedral method has one or more stages, whose classes are leaves of trees. Only this
file distinguishes the methods.
"""
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from degrading.likeness import Weights, weights_of
from degrading.profile_reader import toward_least_blur
from filter_constant import QUANTIZATION_PATCHES
from hashtable import (
    Boundaries,
    ascending,
    features,
    interior_voxels,
    quantile_boundaries,
    sample_voxels,
)
from machine.memory import CODE_BYTES, GB, VOXEL_BYTES, Plan, plan_passes, row_bytes, too_little
from machine.threads import thread_count
from matrix_compute import BLOCK, Stage, apply_filters, solve_groups, training_samples
from octahedral.picture_layout import as_cubes, leaves_in_rows
from octahedral.ridge import solve_stage
from octahedral.stages import (
    TREE_SAMPLES,
    restore_stages,
    sample_features,
    stage_samples,
    stage_taps,
    stage_tree,
    tap_count,
)
from octahedral.tree import MOST_LEAVES, NO_READER, read_tree, tree_of_nodes

CLASS_NAMES = ("azimuth", "inclination", "strength", "coherence")  # in the order of Method.classes
TREE_VOLUMES = 12  # largest number of volumes from which a tree is grown
STAGE_VOXEL_BYTES = 40  # work memory per voxel, in learning by stages
TREE_BYTES = 0.5 * GB  # memory for the samples from which a tree is grown


class Solved(NamedTuple):
    """Filters of a stage, computed from its sums."""

    weights: np.ndarray  # (classes, taps) float32
    # Weights fitted without the held-out voxels; later stages are trained on their output.
    before_others: np.ndarray
    counts: np.ndarray  # (classes,) int: number of samples of each class
    remark: str = ""  # a line to print


class Layout(NamedTuple):
    """Name and format of a file of filters."""

    name: str
    shape: tuple
    dtypes: tuple  # the data type that is written, then those that earlier versions wrote
    since: int = 0  # filters with an earlier format number (in their settings) lack this file


def structure_of(method):
    """The implementation of a method: `Published` or `Octahedral`."""
    return Octahedral(method) if method.octahedral else Published(method)


class Published:
    """The published method: one stage, whose classes come from angle, strength and coherence."""

    stages = 1
    at_once = False  # True if all sums of a stage must be in memory to solve them
    cpu_only = ""  # the reason why only the CPU can be used
    restore_bytes = 54  # memory per voxel of the restored volume; 53 were measured
    sampling_title, classes_title, classes_unit = "class boundaries", "", ""

    def __init__(self, method):
        self.method = method

    # ---- classes of voxels

    def volumes_to_sample(self, volumes):
        """Choose the training volumes from which classes are determined."""
        return volumes

    def sample_features(self, volume, stages, name, volumes):
        """Features of voxels sampled in one volume, to find classes, and the number of voxels."""
        method = self.method
        voxels = sample_voxels(interior_voxels(volume.lr != 0, method.margin),
                               method.quantization_rate, method.seed, f"{name} boundaries")
        return features(volume.lr, voxels, method), voxels.size

    def enough(self, voxels):
        """True if this number of voxels is enough to determine classes."""
        return voxels > QUANTIZATION_PATCHES

    def find_classes(self, feature_samples, advance=lambda classes: None):
        """Class boundaries from the features that were sampled in several training volumes."""
        _, _, *classes = self.method.classes
        values = (np.concatenate([getattr(found, name) for found in feature_samples])
                  for name in Boundaries._fields)
        return Boundaries(*map(quantile_boundaries, values, classes))

    def read_classes(self, held):
        """The boundaries in a dict of lists; it raises ValueError if they are not valid."""
        classes = zip(Boundaries._fields, self.method.classes[2:], strict=True)
        return Boundaries(*(ascending(held[name], number) for name, number in classes))

    # ---- sums

    def sums_folder(self, number):
        """Name of the folder for the sums of a stage, inside the folder of filters."""
        return f"QVF_{self.method.tag}"

    def sums_shape(self, number, classes):
        """Numbers of buckets and of taps (weights of a filter) of a stage's sums."""
        return self.method.buckets, self.method.taps

    def plan(self, voxels, budget, step):
        """The plan of memory of a training, see `plan_passes`; `voxels`: of the largest volume."""
        method, row = self.method, row_bytes(self.method.taps)
        return plan_passes(method.buckets, row, work_bytes(method, voxels), budget, step)

    def samples(self, volume, stages, classes, name, buckets, wanted=None):
        """The training samples of a volume (`TrainingSamples`) for the stage after `stages`."""
        return training_samples(volume, classes, self.method, name, buckets, wanted)

    def solve(self, grams, counts, classes, engine, advance=lambda buckets: None):
        """Solve the sums of a stage.

        Parameters
        ----------
        grams : iterable of Gram
            Together they contain all buckets; they are iterated several times.
        counts : ndarray of int, shape (buckets,)
            Number of samples of each bucket.
        classes : Boundaries or Tree
        engine : engine.CPU or gpu.compute.Cards
        advance : callable, optional
            Called with the number of buckets that were solved.

        Returns
        -------
        Solved
        """
        weights = solve_groups(grams, self.method, advance, engine.ridge_filters)
        return Solved(weights, weights, counts)

    def summary(self, stages, counts):
        """The learned filters, in words."""
        method, (counts,) = self.method, counts
        return (f"{method.buckets} filters of {method.filter_len}^3 voxels from "
                f"{counts.sum():,} samples ({(counts == 0).sum()} buckets have no samples and use "
                "the filter of the nearest bucket)")

    # ---- filters

    def weights(self, volume, stages):
        """The `degrading.likeness.Weights` of the filters and of the estimated blur."""
        return Weights()

    def restore(self, volume, stages, engine, advance=lambda share: None):
        """Restore an LR volume; returns float32 of the shape of ``volume.lr``, in [0, 1]."""
        (boundaries, h), = stages
        sr = apply_filters(volume.lr, h, boundaries, self.method, engine.filter_voxels)
        advance(1)
        return sr

    def leaves(self, stages):
        """Number of tree leaves of each stage, for the file of settings; empty without trees."""
        return []

    def check_leaves(self, leaves):
        """Raise ValueError if these numbers of leaves are not possible."""
        if leaves:
            raise ValueError("its stages are incomplete")

    def layout(self, leaves):
        """The `Layout` of each file of filters, in the order of `arrays`."""
        method, (*_, strength, coherence) = self.method, self.method.classes
        return [Layout(f"h_{method.tag}.npy", (method.buckets, method.taps), (np.float32,)),
                Layout(f"Qfactor_str{method.tag}", (strength - 1,), (np.float64,)),
                Layout(f"Qfactor_coh{method.tag}", (coherence - 1,), (np.float64,))]

    def arrays(self, stages):
        """The arrays to store in the files of filters, in their data types."""
        (boundaries, h), = stages
        return [h, *boundaries]

    def from_arrays(self, arrays):
        """Stages from the arrays of their files; raises ValueError if they are not valid."""
        return [Stage(Boundaries(*arrays[1:]), arrays[0])]

    def for_pictures(self, stages, counts):
        """For pictures: filters as cubes, numbers of samples, numbers and names of classes."""
        return stages[0].weights, counts[0], self.method.classes, CLASS_NAMES


class Octahedral:
    """The octahedral method, with methods as in `Published`; classes are the leaves of trees."""

    at_once = True
    cpu_only = "the only device for octahedral filters (--preset best, scan)"
    classes_title, classes_unit = "growing a tree", "leaf"
    sampling_title = "drawing"

    def __init__(self, method):
        self.method, self.stages = method, method.stages
        # Half precision is enough for filters of scans: no gain changed by more than 0.0002 dB.
        self.stored = np.float16 if method.for_scans else np.float32
        # Memory per voxel of the restored volume: up to 19 bytes were measured, 21 with the
        # initial estimate by projections. Spectra are complex.
        self.restore_bytes = 64 if method.lr_type == "kspace" else 20 if method.for_scans else 24

    # ---- classes of voxels

    def volumes_to_sample(self, volumes):
        return volumes[::-(-len(volumes) // TREE_VOLUMES)]

    def sample_features(self, volume, stages, name, volumes):
        draws = self.method.draws if self.method.for_scans else 1
        count = TREE_SAMPLES // (volumes * draws)
        found = sample_features(volume, stages, self.method, count, name)
        return found, len(found[0])

    def enough(self, voxels):
        return False

    def find_classes(self, feature_samples, advance=lambda classes: None):
        return stage_tree(feature_samples, self.method, advance)

    def read_classes(self, held):
        return read_tree(held)

    # ---- sums

    def sums_folder(self, number):
        return f"QVF_{self.method.tag}_stage{number + 1}"

    def sums_shape(self, number, classes):
        # Twice the leaves: for training and for held-out voxels.
        return 2 * classes.leaves, tap_count(number, self.method)

    def plan(self, voxels, budget, step):
        """One pass with all classes, since their filters are small."""
        # Sums of leaves, for training and held-out voxels, and sums of all nodes.
        leaves = self.method.trees * self.method.leaves
        sums = 4 * leaves * row_bytes(tap_count(1, self.method))
        needed = sums + voxels * STAGE_VOXEL_BYTES + TREE_BYTES + CODE_BYTES
        if needed > budget:
            raise too_little(needed, budget,
                             "take smaller volumes, fewer --leaves or a larger --max_memory")
        return Plan([], needed, budget)

    def samples(self, volume, stages, classes, name, buckets, wanted=None):
        return stage_samples(volume, stages, classes, self.method, name, wanted)

    def solve(self, grams, counts, classes, engine, advance=lambda buckets: None):
        weights, without_held_out, ridge, missed = solve_stage(*grams, classes, self.method)
        weights, without_held_out = (part.astype(self.stored).astype(np.float32)  # as in the files
                                     for part in (weights, without_held_out))
        counts = counts.reshape(2, -1).sum(0)  # training and held-out voxels
        chosen = ""
        if missed:
            # Samples have the weight 1 / error of the initial estimate, so this figure is the gain.
            over = " over the initial estimate" if self.method.for_scans else ""
            gain = -10 * math.log10(missed[ridge])
            chosen = f", chosen for {gain:.2f} dB{over} on held-out voxels"
        remark = (f"{classes.leaves} classes, filters of {weights.shape[1]} voxels, "
                  f"{counts.sum():,} samples; ridge of {ridge:g} samples{chosen}")
        return Solved(weights, without_held_out, counts, remark)

    def summary(self, stages, counts):
        return f"{sum(map(len, counts))} filters in {len(stages)} stages"

    # ---- filters

    def restore(self, volume, stages, engine, advance=lambda share: None):
        reader, weights = stages[0].classes.reader, self.weights(volume, stages)
        if weights.blur < 1:
            volume = replace(volume, reading_error=toward_least_blur(
                reader, volume.descriptors, weights.blur))
        sr = restore_stages(volume, stages, self.method, advance=advance)
        if weights.filters < 1:  # the spline is the initial estimate
            return volume.lr + np.float32(weights.filters) * (sr - volume.lr)
        return volume.agreeing(sr, reader)

    def weights(self, volume, stages):
        """They are 1 for thick slices, and if the slice profile is given."""
        reader = stages[0].classes.reader
        if self.method.refines_one_axis or volume.blur is not None or not reader.any():
            return Weights()
        return weights_of(reader, volume.descriptors, volume.texture, volume.voxel,
                          self.method.factor)

    def leaves(self, stages):
        return [stage.classes.leaves for stage in stages]

    def check_leaves(self, leaves):
        if len(leaves) != self.method.stages:
            raise ValueError("its stages are incomplete")
        most = self.method.trees * MOST_LEAVES
        if not all(type(count) is int and self.method.trees <= count <= most
                   for count in leaves):
            raise ValueError(f"its stages have an invalid number of leaves: {leaves}")

    def layout(self, leaves):
        files, tag = [], self.method.tag
        for number, count in enumerate(leaves):
            taps = tap_count(number, self.method)
            nodes = 2 * count - self.method.trees
            files.append(Layout(f"stage{number + 1}_{tag}.npy", (count, taps),
                                tuple(dict.fromkeys((self.stored, np.float32)))))
            # Thresholds are values of features, and so float32.
            files.append(Layout(f"tree{number + 1}_{tag}.npy", (nodes, 4),
                                (np.float32, np.float64)))
        if self.method.for_scans:
            files.append(Layout(f"reader_{tag}.npy", NO_READER.shape, (np.float64,), since=4))
        return files

    def arrays(self, stages):
        arrays = [array for tree, weights in stages for array in (
            weights.astype(self.stored),
            np.column_stack([tree.feature, tree.threshold, tree.child]).astype(np.float32))]
        return arrays + [stages[0].classes.reader] * self.method.for_scans

    def from_arrays(self, arrays):
        reader = arrays.pop() if len(arrays) % 2 else NO_READER
        pairs = zip(arrays[::2], arrays[1::2], strict=True)
        return [Stage(tree_of_nodes(nodes, reader), weights.astype(np.float32))
                for weights, nodes in pairs]

    def for_pictures(self, stages, counts):
        cubes = [as_cubes(stage.weights, stage_taps(number, self.method)[0])
                 for number, stage in enumerate(stages)]
        cubes, *layout = leaves_in_rows(cubes, counts)
        return cubes, leaves_in_rows(counts, counts)[0], *layout


def work_bytes(method, voxels):
    """Bytes that summing a volume of `voxels` voxels, or solving, needs besides the sums."""
    threads, side = thread_count(), method.taps + 1
    copies = 1.5 if method.sharpen else 1
    summing = voxels * VOXEL_BYTES * copies + threads * (BLOCK + side) * side * 4
    solving = (3 * threads + 3) * side**2 * 8 + 3 * method.buckets * method.taps * 8
    return max(summing, solving) + CODE_BYTES

