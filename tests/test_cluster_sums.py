"""Sums on real worker processes: those of the plain run, whatever happens to a worker."""
import os
import signal
import time

import numpy as np
import pytest
from gram_cases import accumulate
from synthetic import brain, save

from filter_constant import Request
from learning.ledger import fingerprint
from learning.steps import pairs_of
from matrix_compute import Gram, solve_groups
from structure import structure_of

distributed = pytest.importorskip("distributed", reason="needs requirements-cluster.txt")
sums = pytest.importorskip("cluster.sums")


@pytest.fixture
def client(two_workers):
    return two_workers


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Volumes, request and boundaries."""
    folder = tmp_path_factory.mktemp("cluster")
    paths = [save(folder / f"{n}.nii.gz", brain(n)) for n in range(5)]
    request = Request.of(filter_len=5, grad_len=5, q_angle_p=3, q_angle_t=3, train_dir=str(folder))
    structure = structure_of(request.method)
    (name, pair), = pairs_of(paths[0], request)
    return paths, request, structure.find_classes([structure.sample_features(pair, [], name, 5)[0]])


def plain(paths, request, boundaries):
    gram = Gram(request.method.buckets, request.method.taps)
    for path in paths:
        (name, pair), = pairs_of(path, request)
        accumulate(gram, pair, boundaries, request.method, name)
    return gram


def asked(request, boundaries, groups=None, training=""):
    """All buckets' sums, in one group if not said otherwise."""
    every = range(request.method.buckets)
    return sums.Task(boundaries, [], request, request.method.taps, groups or [every],
                     np.ones(len(every), bool), training)


def recorded(path):
    """A volume as batches hold it."""
    return fingerprint(path, path.parent), path


def submit(client, paths, request, boundaries):
    batches = [[recorded(path)] for path in paths]
    return sums.submit_sums(client, batches, asked(request, boundaries))


def agree(groups, gram, method):
    parts = [group.gram for group in groups]
    np.testing.assert_array_equal(np.concatenate([part.count for part in parts]), gram.count)
    # Sums differ by the order of float64 additions; solving makes that larger by the condition.
    np.testing.assert_allclose(np.concatenate([part.packed for part in parts]), gram.packed,
                               rtol=1e-10, atol=1e-10)
    ours, theirs = solve_groups(parts, method), solve_groups([gram], method)
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


def test_a_killed_workers_sums_are_made_again_and_none_twice(client, task):
    groups, notes = submit(client, *task)
    distributed.wait(groups)
    holder = client.who_has(groups[0])[groups[0].key][0]
    os.kill(client.run(os.getpid)[holder], signal.SIGKILL)
    total = client.gather(groups)
    while len(set(client.scheduler_info(n_workers=-1)["workers"]) - {holder}) < 2:
        time.sleep(0.1)  # other tests share both
    agree(total, plain(*task), task[1].method)
    said = [note for batch in client.gather(notes) for note in batch]
    assert sum(note.samples for note in said) == total[0].gram.count.sum()
    assert sorted(total[0].volumes) == [path.name for path in task[0]]


def test_a_corrupt_volume_is_named_and_left_out(client, task):
    paths, request, boundaries = task
    bad = paths[0].with_name("bad.nii.gz")
    bad.write_bytes(b"no volume")
    groups, notes = submit(client, [*paths[:2], bad], request, boundaries)
    agree(client.gather(groups), plain(paths[:2], request, boundaries), request.method)
    assert groups[0].result().volumes == ("0.nii.gz", "1.nii.gz")
    (note,) = client.gather(notes)[2]
    assert note.samples is None and str(bad) in note.fault and "on worker tls://" in note.fault
    assert "changed" not in note.fault


def test_a_volume_that_was_changed_since_its_record_is_left_out(task, tmp_path):
    """Its sums would be saved with the digest of another volume."""
    paths, request, boundaries = task
    volume = recorded(save(tmp_path / "0.nii.gz", brain(0)))
    save(volume[1], brain(7))
    request = request.but(train_dir=str(tmp_path))
    found = sums.sum_batch([recorded(paths[1]), volume], asked(request, boundaries))
    assert found.groups[0].volumes == ("1.nii.gz",) and not found.notes[0].fault
    assert found.notes[1].samples is None
    assert f"{volume[1]}: was changed during the training" in found.notes[1].fault
    agree(found.groups, plain(paths[1:2], request, boundaries), request.method)


def test_groups_of_buckets_are_all_the_buckets(task):
    paths, request, boundaries = task
    spans = [range(0, 30), range(30, 60), range(60, 81)]
    task = asked(request, boundaries, spans)
    groups = sums.sum_batch([recorded(paths[0])], task).groups
    assert [group.gram.buckets for group in groups] == spans
    agree(groups, plain(paths[:1], request, boundaries), request.method)


def test_after_a_stop_no_volume_is_begun_and_the_sums_say_so(client, task):
    paths, request, boundaries = task
    volumes = list(map(recorded, paths))
    client.run(sums.stop_summing, "stopped")
    groups, notes = sums.submit_sums(client, [volumes[:3], volumes[3:]],
                                     asked(request, boundaries, training="stopped"))
    assert client.gather(notes) == [[], []]
    assert groups[0].result().volumes == () and not groups[0].result().gram.count.any()
