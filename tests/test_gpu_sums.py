"""gpu/compute.py: sums, with NumPy or a strict stand-in as CuPy.

Tests marked `gpu` run on a card, where there is one.
"""

import importlib.util
from dataclasses import replace
from threading import Lock

import numpy as np
import pytest
from gram_cases import BOUNDARIES, MEDIUM, random_samples
from strict_card import CARDS, Module, OutOfMemoryError, real_card, strict_card

from engine import CPU
from filter_constant import Method
from get_lar import make_pair
from gpu import compute as gpu_compute
from gpu.cards import cupy_cards
from gpu.compute import Cards, Stream
from machine.errors import UserError
from machine.threads import in_turn
from matrix_compute import BLOCK, Gram, sorted_samples, training_samples


def stream(card, block=BLOCK):
    return Stream(card, Lock(), block)


def samples_case(method=MEDIUM, **case):
    """Random samples, bucket after bucket."""
    return sorted_samples(*random_samples(method, **case), method.buckets, method)


def cpu_sums(drawn, method=MEDIUM, gram=None):
    gram = gram or Gram(method.buckets, method.taps)
    CPU().add(gram, drawn, method)
    return gram


def assert_same_sums(gram, expected):
    np.testing.assert_array_equal(gram.count, expected.count)
    largest = np.abs(expected.packed).max(1, keepdims=True, initial=0) + 1e-30
    # float32 products, summed in another order.
    assert (np.abs(gram.packed - expected.packed) / largest).max() < 1e-5


def bytes_of(gram, buckets):
    return buckets * gram.packed.shape[1] * 8


# ---- sums


@CARDS
@pytest.mark.parametrize("solver", ["ridge", "cg"])  # centred patches, raw ones
def test_sums_on_a_card_are_those_of_the_cpu(make_card, solver):
    method = replace(MEDIUM, solver=solver)
    drawn = samples_case(method)
    gram, told = Gram(MEDIUM.buckets, MEDIUM.taps), []
    sums = stream(make_card(), block=50)
    sums.add(gram, drawn, method, told.append)
    sums.settle(gram)
    assert sum(told) == drawn.voxels.size and max(told) <= 50
    assert_same_sums(gram, cpu_sums(drawn, method))


@CARDS
def test_sums_of_published_size_on_a_card_are_those_of_the_cpu(make_card):
    method = Method(q_angle_p=1, q_angle_t=1)
    drawn = samples_case(method, shape=(19, 20, 21))
    gram, sums = Gram(method.buckets, method.taps), stream(make_card())
    sums.add(gram, drawn, method)
    sums.settle(gram)
    assert_same_sums(gram, cpu_sums(drawn, method))


def test_volumes_stay_on_the_card_until_the_sums_are_asked_for():
    gram, expected = Gram(MEDIUM.buckets, MEDIUM.taps), Gram(MEDIUM.buckets, MEDIUM.taps)
    sums = stream(strict_card())
    for seed in range(3):
        drawn = samples_case(seed=seed)
        sums.add(gram, drawn, MEDIUM)
        cpu_sums(drawn, gram=expected)
        if seed < 2:
            assert sums.buckets == range(MEDIUM.buckets) and not gram.packed.any()
    sums.settle(gram)
    assert_same_sums(gram, expected)
    sums.settle(gram)  # nothing more
    assert_same_sums(gram, expected)


def test_samples_of_one_pass_go_to_the_buckets_of_that_pass(brain):
    pair = make_pair(brain, MEDIUM)
    wanted = np.zeros(MEDIUM.buckets, bool)
    wanted[12:24] = True
    expected, gram = Gram(12, MEDIUM.taps, 12), Gram(12, MEDIUM.taps, 12)
    sums = stream(strict_card())
    drawn = training_samples(pair, BOUNDARIES, MEDIUM, "v", gram.buckets, wanted)
    cpu_sums(drawn, gram=expected)
    sums.add(gram, drawn, MEDIUM)
    sums.settle(gram)
    assert expected.count.sum() > 100
    assert_same_sums(gram, expected)


def test_one_card_sums_pass_after_pass():
    (pair, voxels, bucket), sums = random_samples(), stream(strict_card())
    whole = cpu_sums(samples_case())
    for first, stop in ((0, 20), (20, 36)):
        gram, inside = Gram(stop - first, MEDIUM.taps, first), (bucket >= first) & (bucket < stop)
        part = sorted_samples(pair, voxels[inside], bucket[inside] - first, stop - first, MEDIUM)
        sums.add(gram, part, MEDIUM)
        sums.settle(gram)
        expected = Gram(stop - first, MEDIUM.taps)
        expected.packed[:], expected.count[:] = whole.packed[first:stop], whole.count[first:stop]
        assert_same_sums(gram, expected)


def test_buckets_that_do_not_fit_on_the_card_are_summed_in_groups(monkeypatch):
    monkeypatch.setattr(gpu_compute, "WORK_BYTES", 1 << 20)
    gram, expected = Gram(MEDIUM.buckets, MEDIUM.taps), Gram(MEDIUM.buckets, MEDIUM.taps)
    card = strict_card(int((bytes_of(gram, 7.5) + (1 << 20)) / gpu_compute.FREE_SHARE))
    sums = stream(card, block=128)
    for seed in range(2):
        drawn = samples_case(seed=seed)
        sums.add(gram, drawn, MEDIUM)
        cpu_sums(drawn, gram=expected)
    sums.settle(gram)
    assert 3 <= sums.most <= 7 and not card.xp.memory.refused  # the plan held
    assert_same_sums(gram, expected)


@pytest.mark.parametrize("buckets", [30, 9, 1])
def test_out_of_memory_halves_the_group_and_the_sums_are_the_same(buckets):
    gram, expected = Gram(MEDIUM.buckets, MEDIUM.taps), Gram(MEDIUM.buckets, MEDIUM.taps)
    card = strict_card(bytes_of(gram, buckets) + 500_000, promised=1 << 40)
    sums = stream(card, block=128)
    for seed in range(2):
        drawn, told = samples_case(seed=seed), []
        sums.add(gram, drawn, MEDIUM, told.append)
        cpu_sums(drawn, gram=expected)
        assert sum(told) == drawn.voxels.size
    sums.settle(gram)
    # 500 kB are 8 buckets too.
    assert card.xp.memory.refused >= 1 and sums.most < min(MEDIUM.buckets, buckets + 8)
    assert_same_sums(gram, expected)


def test_out_of_memory_halves_the_block_where_one_bucket_is_left():
    gram, drawn = Gram(MEDIUM.buckets, MEDIUM.taps), samples_case()
    card = strict_card(bytes_of(gram, 1) + 400_000, promised=1)
    sums = stream(card, block=512)
    sums.add(gram, drawn, MEDIUM)
    sums.settle(gram)
    assert sums.most == 1 and sums.block < 512 and card.xp.memory.refused
    assert_same_sums(gram, cpu_sums(drawn))


def test_out_of_memory_amid_a_volume_loses_and_doubles_nothing():
    class Failing(Module):
        calls = 0

        def take(self, *arguments):
            Failing.calls += 1
            if Failing.calls % 11 == 0 and Failing.calls < 100:
                raise OutOfMemoryError
            return self.__getattr__("take")(*arguments)

    card = strict_card()
    gram, drawn = Gram(MEDIUM.buckets, MEDIUM.taps), samples_case()
    sums = stream(card._replace(xp=Failing(card.xp.memory)))
    sums.add(gram, drawn, MEDIUM)
    sums.settle(gram)
    assert Failing.calls > 100 and sums.most < MEDIUM.buckets
    assert_same_sums(gram, cpu_sums(drawn))


def test_a_card_with_too_little_memory_for_anything_is_said():
    with pytest.raises(UserError, match="too little free memory"):
        stream(strict_card(10_000)).add(Gram(MEDIUM.buckets, MEDIUM.taps), samples_case(), MEDIUM)


# ---- several cards


def sum_on(cards, gram, volumes):
    """Sum volumes as `learning.steps.sum_samples` does.

    That is on whichever card is idle, in a thread for each and one more.
    """
    sums = Cards(cards)

    def add(drawn):
        with sums.place() as place:
            place.add(gram, drawn, MEDIUM)
        return drawn.voxels.size

    for drawn, added in in_turn(add, volumes, sums.ahead):
        assert added() == drawn.voxels.size
    with sums.settled(gram):
        pass
    return sums


@pytest.mark.parametrize("room", [None, 9, 3])  # buckets that fit on a card
def test_sums_of_several_cards_are_added_at_the_end(room):
    gram, expected = Gram(MEDIUM.buckets, MEDIUM.taps), Gram(MEDIUM.buckets, MEDIUM.taps)
    size = bytes_of(gram, room) + 1_500_000 if room else 1 << 40
    cards = [strict_card(size, promised=1 << 40, number=number) for number in range(3)]
    volumes = [samples_case(seed=seed) for seed in range(8)]
    for drawn in volumes:
        cpu_sums(drawn, gram=expected)
    sums = sum_on(cards, gram, volumes)
    assert_same_sums(gram, expected)
    assert all(not stream.touched for stream in sums.streams)
    assert sum(card.xp.memory.peak > 0 for card in cards) >= 2  # more than one was at work
    assert not room or any(card.xp.memory.refused for card in cards)


@pytest.mark.gpu
def test_sums_of_all_cards_there_are_are_those_of_the_cpu():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    try:
        cards, _ = cupy_cards()
    except Exception as fault:
        pytest.skip(f"no card: {fault}")
    gram, expected = Gram(MEDIUM.buckets, MEDIUM.taps), Gram(MEDIUM.buckets, MEDIUM.taps)
    volumes = [samples_case(seed=seed) for seed in range(8)]
    for drawn in volumes:
        cpu_sums(drawn, gram=expected)
    sum_on(cards, gram, volumes)
    assert_same_sums(gram, expected)


# ---- on a card only


@pytest.mark.gpu
@pytest.mark.parametrize("planned", [True, False])
def test_a_card_that_others_have_filled_sums_in_groups(planned):
    card = real_card()
    method = Method(q_angle_p=2, q_angle_t=2)
    drawn = samples_case(method, shape=(24, 24, 24))
    gram = Gram(method.buckets, method.taps)
    # 240 MB are left, all sums take 256 MB.
    hog = card.xp.zeros(max(int(card.free()) - 240_000_000, 0), card.xp.uint8)
    sums = stream(card if planned else card._replace(free=lambda: 1 << 40), block=256)
    sums.add(gram, drawn, method)
    sums.settle(gram)
    del hog
    assert 1 <= sums.most < method.buckets
    assert_same_sums(gram, cpu_sums(drawn, method))
