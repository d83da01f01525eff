"""threads.py: work is shared, faults come out, and volumes do not depend on how many there are."""

import os
import time
from dataclasses import replace
from functools import partial
from threading import Barrier, Event, Thread

import numpy as np
import pytest
import scipy.fft
from synthetic import PATIENT
from threadpoolctl import threadpool_info, threadpool_limits

import hashtable
from filter_constant import Method
from get_lar import make_pair
from hashtable import Boundaries
from machine import threads
from machine.errors import UserError
from machine.threads import in_turn, one_ahead
from matrix_compute import apply_filters

NUMBERS = (1, 2, 5)


@pytest.mark.parametrize("value, number", [("3", 3), ("3,1", 3), (" 2 , 4", 2)])
def test_the_first_number_of_omp_num_threads_counts(monkeypatch, value, number):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads.thread_count() == number
    for none in ("", "0", "many", ",2"):
        monkeypatch.setenv("OMP_NUM_THREADS", none)
        assert threads.thread_count() == (len(os.sched_getaffinity(0)) if hasattr(
            os, "sched_getaffinity") else os.cpu_count())


@pytest.mark.parametrize("number", NUMBERS)
def test_every_task_is_done_once_with_buffers_of_its_thread(monkeypatch, number):
    monkeypatch.setattr(threads, "thread_count", lambda: number)
    done, made = [], []

    def buffers():
        made.append([])
        return (made[-1],)

    threads.in_threads(
        range(100), lambda task, mine: (done.append(task), mine.append(task)), buffers
    )
    assert sorted(done) == list(range(100)) and len(made) == number
    assert sorted(task for mine in made for task in mine) == list(range(100))


def test_no_task_is_no_work():
    threads.in_threads([], pytest.fail, pytest.fail)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_fault_is_not_swallowed(monkeypatch, number):
    monkeypatch.setattr(threads, "thread_count", lambda: number)
    with pytest.raises(ZeroDivisionError):
        threads.in_threads(range(5), lambda task: 1 / (task - 3))


def test_fault_in_a_thread_is_not_swallowed():
    def work(task):
        raise ZeroDivisionError(task)

    with pytest.raises(ZeroDivisionError):
        threads.in_threads(range(5), work, tuple)


@pytest.mark.parametrize("number", NUMBERS)
def test_blas_works_in_one_thread_meanwhile_where_the_work_calls_it(monkeypatch, number):
    def limits():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    monkeypatch.setattr(threads, "thread_count", lambda: number)
    seen, before = [], limits()
    threads.in_threads(range(4), lambda _: seen.extend(limits()), blas=True)
    assert set(seen) == {1} and limits() == before
    seen.clear()
    threads.in_threads([0], lambda _: seen.extend(limits()))
    assert seen == before


def test_threads_that_overlap_keep_blas_in_one_thread_each_and_set_it_back_at_the_end():
    def limits():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    both, seen = Barrier(2), []

    def early():
        with threads.blas_alone():
            both.wait(PATIENT)  # the other is inside, too

    def late():
        with threads.blas_alone():
            both.wait(PATIENT)
            first.join()
            seen.append(limits())

    with threadpool_limits(3, "blas"):  # on a machine of one core, too
        before = limits()
        first, last = Thread(target=early), Thread(target=late)
        for thread in (first, last):
            thread.start()
        for thread in (first, last):
            thread.join()
        assert seen == [{1}] and limits() == before == {3}


@pytest.mark.parametrize("kspace_keep", ["third", "auto"])
def test_fourier_transforms_work_in_as_many_threads_as_are_set(monkeypatch, brain, kspace_keep):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    used = set()

    def watched(plain, volume, workers=None):
        used.add(workers)
        return plain(volume, workers=workers)

    for name in ("fftn", "ifftn"):
        monkeypatch.setattr(scipy.fft, name, partial(watched, getattr(scipy.fft, name)))
    method = replace(Method(), lr_type="kspace", kspace_keep=kspace_keep, start="projected",
                       feature_space="octahedral", filter_len=5)
    pair = make_pair(brain, method)
    pair.operator.forward(pair.hr), pair.operator.interpolate(pair.low)
    assert used == {3}


def test_number_of_threads_can_be_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.thread_count() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(7), raising=False)
    assert threads.thread_count() == 7
    for nonsense in ("", "0", "-1", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert threads.thread_count() >= 1


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_spans_cover_everything_once(count):
    found = threads.spans(count, 8)
    assert [n for start, stop in found for n in range(start, stop)] == list(range(count))
    assert all(0 < stop - start <= 8 for start, stop in found)


def test_pairs_and_restored_volumes_are_bit_identical_for_any_number_of_threads(monkeypatch, brain):
    method = replace(Method(), filter_len=5, grad_len=5)
    shape = method.buckets, method.taps
    h = np.random.default_rng(62).standard_normal(shape).astype(np.float32) / 25
    boundaries = Boundaries(np.array([1e-3, 1e-2]), np.array([0.3, 0.6]))
    found = []
    for number in NUMBERS:
        for module in (threads, hashtable):
            monkeypatch.setattr(module, "thread_count", lambda number=number: number)
        pair = make_pair(brain, method)
        found.append((pair.lr, apply_filters(pair.lr, h, boundaries, method)))
    assert (found[0][0] != found[0][1]).any()
    for other in found[1:]:
        for mine, theirs in zip(found[0], other):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("ahead", [False, True])
def test_work_in_turn_gives_results_and_faults_of_each_in_its_turn(ahead):
    def work(item):
        if item % 3 == 1:
            raise UserError(str(item))
        return item * 10

    found = []
    for item, result in in_turn(work, range(7), ahead):
        try:
            found.append((item, result()))
        except UserError as fault:
            found.append((item, str(fault)))
    assert found == [(item, str(item) if item % 3 == 1 else item * 10) for item in range(7)]
    assert list(in_turn(work, [], ahead)) == []


def test_the_next_is_worked_on_while_this_one_is_dealt_with():
    begun = [Event() for _ in range(3)]
    for item, result in in_turn(lambda item: begun[item].set(), range(3), True):
        result()
        assert item == 2 or begun[item + 1].wait(PATIENT)  # it needs no more from this loop
    begun = [Event() for _ in range(3)]
    for item, result in in_turn(lambda item: begun[item].set(), range(3), False):
        result()
        assert item == 2 or not begun[item + 1].is_set()


def test_no_more_is_worked_on_than_one_ahead_and_none_after_a_break():
    done = []
    for item, result in in_turn(done.append, range(10), True):
        result()
        time.sleep(0.05)
        assert max(done) <= item + 1
        if item == 3:
            break
    time.sleep(0.05)
    assert max(done) <= 4


def test_the_next_item_is_made_while_one_is_worked_on(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    made = [Event() for _ in range(3)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    following = one_ahead(items())
    assert next(following) == 0
    assert made[1].wait(3600)  # though nobody has asked for it yet
    assert list(following) == [1, 2]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_what_making_an_item_raises_comes_in_its_turn(monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)

    def items():
        yield 1
        raise ValueError("spoilt")

    following = one_ahead(items())
    assert next(following) == 1
    with pytest.raises(ValueError, match="spoilt"):
        next(following)
