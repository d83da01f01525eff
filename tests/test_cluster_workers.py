"""Workers that come and go while volumes are handed out."""
import itertools
import time
from types import SimpleNamespace

import pytest
from conftest import one_line

pytest.importorskip("distributed", reason="needs requirements-cluster.txt")
workers_of = pytest.importorskip("cluster.workers")


@pytest.fixture(scope="module")
def workers():
    """Three workers at first; each test has as many as it needs."""
    with workers_of.connected("local:3") as found:
        yield found


def scaled(workers, count):
    """Have that many workers, and wait until there are."""
    workers.client.cluster.scale(count)
    while len(workers.about) != count:
        time.sleep(0.05)


def test_fewer_workers_go_on_with_what_was_handed_out_to_more(workers):
    scaled(workers, 3)
    found, items = [], map(str, range(30))
    each = workers.in_order(len, items)
    found += [(item, result()) for item, result in itertools.islice(each, 1)]
    for count in (2, 1):
        scaled(workers, count)
        found += [(item, result()) for item, result in itertools.islice(each, 1)]
    found += [(item, result()) for item, result in each]
    assert found == [(str(n), len(str(n))) for n in range(30)]


def test_a_stage_that_begins_without_workers_waits_for_one(workers):
    scaled(workers, 0)
    workers.client.cluster.scale(1)
    address, memory = workers.smallest()
    assert address in workers.about and memory > 0


def test_where_none_comes_back_that_is_said(workers, monkeypatch):
    monkeypatch.setattr(workers_of, "ALONE", 0.1)
    scaled(workers, 0)
    assert one_line(workers.smallest) == workers_of.NONE_LEFT


def test_a_result_that_is_lost_with_all_workers_is_not_waited_for_without_end(
        workers, monkeypatch):
    scaled(workers, 1)
    (_, result), = workers.in_order(len, ["a volume"])
    monkeypatch.setattr(workers_of, "ALONE", 0.1)
    monkeypatch.setattr(workers_of, "LOOK", 0.1)
    scaled(workers, 0)
    assert one_line(result) == workers_of.NONE_LEFT


def test_lost_local_processes_are_started_every_ten_seconds_until_the_command_gives_up(monkeypatch):
    now, started, there = 100.0, [], {}
    monkeypatch.setattr(workers_of, "time", SimpleNamespace(monotonic=lambda: now))
    cluster = SimpleNamespace(worker_spec={"a": 1, "b": 2},
                              scale=lambda count: started.append((now, count)))
    client = SimpleNamespace(cluster=cluster, scheduler_info=lambda n_workers: {"workers": there})
    workers = workers_of.Workers(client, "local:2")
    for seconds in (101, 110, 110.5, 111, 120.5, 121, 400):
        now = seconds
        assert workers._last_seen(100.0) == 100.0
    assert started == [(110.5, 2), (121, 2), (400, 2)]
    now = 400.5
    assert one_line(workers._last_seen, 100.0) == workers_of.NONE_LEFT
    there["tcp://a:1"] = {}
    assert workers._last_seen(100.0) == 400.5
