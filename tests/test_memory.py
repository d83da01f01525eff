"""Training in passes where memory is short: promised in docs/reliability.md."""

import subprocess
import sys

import numpy as np
import pytest
from synthetic import ROOT, command
from trainings import learned, little_memory, small_files, training

import structure
from engine import CPU
from filter_constant import Method, Request
from learning import steps
from machine import memory
from machine.errors import UserError
from matrix_compute import Gram, solve, solve_groups


def test_the_plan_covers_all_buckets_once_and_fits():
    method = Method()
    row, work = memory.row_bytes(method.taps), structure.work_bytes(method, 10**7)
    assert row * method.buckets == pytest.approx(4.09e9, rel=1e-3)
    for step in (1, 18, 576):
        for rows in (step, 100, 288, 576, 1000):
            budget = work + max(rows, step) * row
            plan = structure.Published(method).plan(10**7, budget, step)
            assert [b for buckets in plan.passes for b in buckets] == list(range(576))
            assert all(buckets.start % step == 0 for buckets in plan.passes)
            assert plan.needed == work + max(map(len, plan.passes)) * row <= budget
            assert len(plan.passes) == 1 or rows < 576
        with pytest.raises(UserError, match="needs at least"):
            structure.Published(method).plan(10**7, work + step * row - 1, step)


def test_too_little_memory_is_one_line_at_the_start(six_volumes, tmp_path):
    status, _, errors = command(
        "train.py", *training(six_volumes, tmp_path, "--max_memory", "0.01")
    )
    assert status == 2 and len(errors) == 1 and "needs at least" in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_several_passes_give_the_filters_of_one(six_volumes, undisturbed, tmp_path):
    process = small_files(six_volumes, tmp_path, "--max_memory", "1e-9")
    out, errors = process.communicate()
    assert process.returncode == 2 and "needs at least" in errors
    code = little_memory(2)
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, training(six_volumes, tmp_path))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "5 passes" in process.stdout
    assert learned(tmp_path) == undisturbed


def test_passes_that_are_killed_and_planned_anew_give_the_same_filters(
    six_volumes, undisturbed, tmp_path
):
    arguments = map(str, training(six_volumes, tmp_path, "--checkpoint_minutes", "0"))
    process = subprocess.Popen(
        [sys.executable, "-c", little_memory(3), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "pass 2" in line:
            process.kill()
            break
    process.communicate()
    # In one pass, and by itself in larger files.
    status, out, _ = command("train.py", *training(six_volumes, tmp_path))
    assert status == 0 and "in part" in out and "pass" not in out.split("Going on")[1].split("[")[1]
    assert learned(tmp_path) == undisturbed


@pytest.mark.parametrize("solver", ["ridge", "cg"])
def test_groups_of_buckets_are_solved_as_all_at_once(solver):
    method = Method(filter_len=3, q_angle_p=2, q_angle_t=2, solver=solver)
    random, whole = np.random.default_rng(0), Gram(method.buckets, method.taps)
    rows, columns = np.tril_indices(whole.side)
    for bucket in range(0, method.buckets, 2):
        samples = random.standard_normal((60, whole.side))
        whole.packed[bucket], whole.count[bucket] = (samples.T @ samples)[rows, columns], 60
    parts = []
    for buckets in (range(0, 5), range(5, 30), range(30, 36)):
        parts.append(Gram(len(buckets), method.taps, buckets.start))
        parts[-1].packed[:], parts[-1].count[:] = whole.packed[buckets], whole.count[buckets]
    np.testing.assert_array_equal(solve_groups(parts, method), solve(whole, method))


@pytest.mark.parametrize("volumes", [1, 5, 100, 1000])
def test_trees_are_grown_from_volumes_of_all_the_folder(volumes):
    most, method = structure.TREE_VOLUMES, Method(feature_space="octahedral", filter_len=7)
    found = structure.Octahedral(method).volumes_to_sample(list(range(volumes)))
    assert found[0] == 0 and len(found) <= most and len(set(np.diff(found))) <= 1
    assert len(found) == volumes if volumes <= most else found[-1] > volumes / 2


def test_stages_need_the_memory_of_their_trees_too(monkeypatch):
    method = Method(feature_space="octahedral", filter_len=7, trees=1, leaves=8)
    before = structure.Octahedral(method).plan(10**6, 1e12, 1).needed
    monkeypatch.setattr(structure, "TREE_BYTES", structure.TREE_BYTES + 5e9)
    assert structure.Octahedral(method).plan(10**6, 1e12, 1).needed == before + 5e9


def test_on_the_cpu_one_volume_is_in_memory_at_a_time(tmp_path, monkeypatch):
    method = Method(feature_space="octahedral", filter_len=7, trees=1, leaves=8)
    stages = structure.Octahedral(method)
    checkpoint = steps.checkpoint_of(stages, [], Request(method, arrays_dir=str(tmp_path)))
    monkeypatch.setattr(steps, "largest_volume", lambda _: 10**6)
    planned = steps.plan_memory(stages, [], checkpoint, CPU(), 1e12)
    assert planned.needed == stages.plan(10**6, 1e12, 1).needed
