"""Sums on real worker processes: those of the plain run, whatever happens to a worker."""
import os
import signal

import numpy as np
import pytest
from synthetic import brain, save

from filter_constant import Settings
from learning import pairs_of
from matrix_compute import Gram, accumulate, solve_groups
from structure import structure_of

distributed = pytest.importorskip("distributed", reason="needs requirements-cluster.txt")
sums = pytest.importorskip("cluster.sums")


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, memory_limit=0,
                                 dashboard_address=None) as cluster,
        distributed.Client(cluster) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Volumes, settings and boundaries."""
    folder = tmp_path_factory.mktemp("cluster")
    paths = [save(folder / f"{n}.nii.gz", brain(n)) for n in range(5)]
    settings = Settings(filter_len=5, grad_len=5, q_angle_p=3, q_angle_t=3, train_dir=str(folder))
    structure = structure_of(settings)
    (name, pair), = pairs_of(paths[0], settings)
    return paths, settings, structure.find_classes([structure.survey(pair, [], name, 5)[0]])


def plain(paths, settings, boundaries):
    gram = Gram(settings.buckets, settings.taps)
    for path in paths:
        (name, pair), = pairs_of(path, settings)
        accumulate(gram, pair, boundaries, settings, name)
    return gram


def submit(client, paths, settings, boundaries):
    shape = settings.buckets, settings.taps
    return sums.submit_sums(client, [[path] for path in paths], boundaries, [], settings, shape,
                            range(settings.buckets))


def agree(groups, gram, settings):
    np.testing.assert_array_equal(np.concatenate([part.count for part in groups]), gram.count)
    # Sums differ by the order of float64 additions; solving makes that larger by the condition.
    np.testing.assert_allclose(np.concatenate([part.packed for part in groups]), gram.packed,
                               rtol=1e-10, atol=1e-10)
    ours, theirs = solve_groups(groups, settings), solve_groups([gram], settings)
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


def test_a_killed_workers_sums_are_made_again_and_none_twice(client, task):
    groups, notes = submit(client, *task)
    distributed.wait(groups)
    holder = client.who_has(groups[0])[groups[0].key][0]
    os.kill(client.run(os.getpid)[holder], signal.SIGKILL)
    total = client.gather(groups)
    agree(total, plain(*task), task[1])
    assert sum(sum(samples) for samples, _ in client.gather(notes)) == total[0].count.sum()


def test_a_corrupt_volume_is_named_and_left_out(client, task, tmp_path):
    paths, settings, boundaries = task
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no volume")
    groups, notes = submit(client, [*paths[:2], bad], settings, boundaries)
    agree(client.gather(groups), plain(paths[:2], settings, boundaries), settings)
    (samples,), (fault,) = client.gather(notes)[2]
    assert samples is None and str(bad) in fault and "on worker tcp://" in fault


def test_groups_of_buckets_are_all_the_buckets(task, monkeypatch):
    paths, settings, boundaries = task
    monkeypatch.setattr(sums, "GROUP_BYTES", 650_000)
    shape = settings.buckets, settings.taps
    groups = sums.sum_batch(paths[:1], boundaries, [], settings, shape,
                            range(settings.buckets)).groups
    assert len(groups) > 1 and all(part.packed.nbytes <= 650_000 for part in groups)
    agree(groups, plain(paths[:1], settings, boundaries), settings)
