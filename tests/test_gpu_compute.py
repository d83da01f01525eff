"""gpu_compute.py without a graphics card: with NumPy in CuPy's place, and with a strict stand-in.

Tests marked `gpu` run on a card, where there is one.
"""

import importlib.metadata
import importlib.util
from dataclasses import replace
from functools import partial
from threading import Lock

import numpy as np
import pytest
from strict_card import CARDS, NAMES, Module, OutOfMemoryError, numpy_card, real_card, strict_card
from test_matrix_compute import pair_of, random_gram

import matrix_compute
from apply_filters import apply_filters, filter_voxels
from engine import CPU
from filter_constant import Settings
from get_lar import make_pair
from gpu import compute as gpu_compute
from gpu.cards import cupy_cards
from gpu.compute import Cards, Stream, ridge_filters, solve_batch
from hashtable import Boundaries
from machine.errors import UserError
from machine.threads import in_turn
from matrix_compute import BLOCK, Gram, draw_samples, ridge_filter, solve, sorted_samples, unpacked

# 36 buckets of 126 x 126
SMALL = Settings(filter_len=5, grad_len=5, q_angle_p=2, q_angle_t=2, sample_rate=1, train_div=1)
BOUNDARIES = Boundaries(np.array([1e-3, 1e-2]), np.array([0.3, 0.6]))


def stream(card, block=BLOCK):
    return Stream(card, Lock(), block)


def random_samples(settings=SMALL, seed=3, shape=(17, 18, 19)):
    """A random volume, voxels of it and a bucket for each; some buckets stay empty."""
    rng = np.random.default_rng(seed)
    pair = pair_of(*(rng.random(shape, np.float32) for _ in range(2)))
    inner = np.zeros(shape, bool)
    half = settings.filter_len // 2
    inner[(slice(half, -half),) * 3] = True
    voxels = np.flatnonzero(inner)
    bucket = rng.integers(0, settings.buckets - 1, voxels.size) // 2 * 2 % settings.buckets
    return pair, voxels, bucket.astype(np.int32)


def drawn_case(settings=SMALL, **case):
    """The same, bucket after bucket."""
    return sorted_samples(*random_samples(settings, **case), settings.buckets, settings)


def cpu_sums(drawn, settings=SMALL, gram=None):
    gram = gram or Gram(settings.buckets, settings.taps)
    CPU().add(gram, drawn, settings)
    return gram


def assert_same_sums(gram, expected):
    np.testing.assert_array_equal(gram.count, expected.count)
    largest = np.abs(expected.packed).max(1, keepdims=True, initial=0) + 1e-30
    # float32 products, summed in another order.
    assert (np.abs(gram.packed - expected.packed) / largest).max() < 1e-5


def bytes_of(gram, buckets):
    return buckets * gram.packed.shape[1] * 8


# ---- the stand-in


def test_the_stand_in_refuses_what_a_card_would():
    xp, host = strict_card().xp, np.arange(4.0)
    array = xp.asarray(host)
    for wrong in (
        lambda: array + host,
        lambda: host + array,
        lambda: host[array],
        lambda: array[host.astype(int)],
        lambda: np.asarray(array),
        lambda: np.add(array, 1),
        lambda: float(array[0]),
        lambda: bool(array[0]),
        lambda: xp.take(array, np.array([1])),
        lambda: xp.linalg.cholesky(np.eye(2)),
        lambda: list(array),
        lambda: array.__setitem__(0, host[:1]),
        lambda: host.__setitem__(slice(None), array),
        lambda: xp.asnumpy(host),
        lambda: array.__iadd__(host),
    ):
        with pytest.raises((TypeError, ValueError, IndexError)):
            wrong()
    for absent in (
        lambda: xp.einsum_of_mine,
        lambda: xp.linalg.schur,
        lambda: array.no_such,
        lambda: array.tolist,
    ):
        with pytest.raises(AttributeError):
            absent()
    with pytest.raises(AssertionError):
        xp.take(array, xp.asarray([0]), mode="clip")  # NumPy has that argument, CuPy has not
    np.testing.assert_array_equal(xp.asnumpy((array * 2 + array)[1:]), host[1:] * 3)


def test_the_stand_in_counts_its_memory():
    card = strict_card(800)
    array = card.xp.zeros(50)
    view = array[10:]
    with pytest.raises(OutOfMemoryError):
        card.xp.zeros(51)
    del array
    assert card.free() == 400
    del view
    assert card.free() == 800


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_an_installed_cupy_has_the_names_that_the_stand_in_allows():
    import cupy

    if not importlib.metadata.version(
        next(iter(importlib.metadata.packages_distributions()["cupy"]))
    ).startswith("14."):
        pytest.skip("another major version")
    for name in NAMES:
        holder, _, last = name.removeprefix("cupy.").rpartition(".")
        if not name.startswith("cupyx"):
            assert hasattr(
                {"": cupy, "linalg": cupy.linalg, "ndarray": cupy.ndarray}[holder], last
            ), name


# ---- sums


@CARDS
@pytest.mark.parametrize("solver", ["ridge", "cg"])  # centred patches, raw ones
def test_sums_on_a_card_are_those_of_the_cpu(make_card, solver):
    settings = replace(SMALL, solver=solver)
    drawn = drawn_case(settings)
    gram, told = Gram(SMALL.buckets, SMALL.taps), []
    sums = stream(make_card(), block=50)
    sums.add(gram, drawn, settings, told.append)
    sums.settle(gram)
    assert sum(told) == drawn.voxels.size and max(told) <= 50
    assert_same_sums(gram, cpu_sums(drawn, settings))


@CARDS
def test_sums_of_published_size_on_a_card_are_those_of_the_cpu(make_card):
    settings = Settings(q_angle_p=1, q_angle_t=1)
    drawn = drawn_case(settings, shape=(19, 20, 21))
    gram, sums = Gram(settings.buckets, settings.taps), stream(make_card())
    sums.add(gram, drawn, settings)
    sums.settle(gram)
    assert_same_sums(gram, cpu_sums(drawn, settings))


def test_volumes_stay_on_the_card_until_the_sums_are_asked_for():
    gram, expected, sums = (
        Gram(SMALL.buckets, SMALL.taps),
        Gram(SMALL.buckets, SMALL.taps),
        stream(strict_card()),
    )
    for seed in range(3):
        drawn = drawn_case(seed=seed)
        sums.add(gram, drawn, SMALL)
        cpu_sums(drawn, gram=expected)
        if seed < 2:
            assert sums.buckets == range(SMALL.buckets) and not gram.packed.any()
    sums.settle(gram)
    assert_same_sums(gram, expected)
    sums.settle(gram)  # nothing more
    assert_same_sums(gram, expected)


def test_samples_of_one_pass_go_to_the_buckets_of_that_pass(brain):
    pair = make_pair(brain, SMALL)
    wanted = np.zeros(SMALL.buckets, bool)
    wanted[12:24] = True
    expected, gram, sums = Gram(12, SMALL.taps, 12), Gram(12, SMALL.taps, 12), stream(strict_card())
    drawn = draw_samples(pair, BOUNDARIES, SMALL, "v", gram.buckets, wanted)
    cpu_sums(drawn, gram=expected)
    sums.add(gram, drawn, SMALL)
    sums.settle(gram)
    assert expected.count.sum() > 100
    assert_same_sums(gram, expected)


def test_one_card_sums_pass_after_pass():
    (pair, voxels, bucket), sums = random_samples(), stream(strict_card())
    whole = cpu_sums(drawn_case())
    for first, stop in ((0, 20), (20, 36)):
        gram, inside = Gram(stop - first, SMALL.taps, first), (bucket >= first) & (bucket < stop)
        part = sorted_samples(pair, voxels[inside], bucket[inside] - first, stop - first, SMALL)
        sums.add(gram, part, SMALL)
        sums.settle(gram)
        expected = Gram(stop - first, SMALL.taps)
        expected.packed[:], expected.count[:] = whole.packed[first:stop], whole.count[first:stop]
        assert_same_sums(gram, expected)


def test_buckets_that_do_not_fit_on_the_card_are_summed_in_groups(monkeypatch):
    monkeypatch.setattr(gpu_compute, "WORK_BYTES", 1 << 20)
    gram, expected = Gram(SMALL.buckets, SMALL.taps), Gram(SMALL.buckets, SMALL.taps)
    card = strict_card(int((bytes_of(gram, 7.5) + (1 << 20)) / gpu_compute.FREE_SHARE))
    sums = stream(card, block=128)
    for seed in range(2):
        drawn = drawn_case(seed=seed)
        sums.add(gram, drawn, SMALL)
        cpu_sums(drawn, gram=expected)
    sums.settle(gram)
    assert 3 <= sums.most <= 7 and not card.xp.memory.refused  # the plan held
    assert_same_sums(gram, expected)


@pytest.mark.parametrize("buckets", [30, 9, 1])
def test_out_of_memory_halves_the_group_and_the_sums_are_the_same(buckets):
    gram, expected = Gram(SMALL.buckets, SMALL.taps), Gram(SMALL.buckets, SMALL.taps)
    card = strict_card(bytes_of(gram, buckets) + 500_000, promised=1 << 40)
    sums = stream(card, block=128)
    for seed in range(2):
        drawn, told = drawn_case(seed=seed), []
        sums.add(gram, drawn, SMALL, told.append)
        cpu_sums(drawn, gram=expected)
        assert sum(told) == drawn.voxels.size
    sums.settle(gram)
    # 500 kB are 8 buckets too.
    assert card.xp.memory.refused >= 1 and sums.most < min(SMALL.buckets, buckets + 8)
    assert_same_sums(gram, expected)


def test_out_of_memory_halves_the_block_where_one_bucket_is_left():
    gram, drawn = Gram(SMALL.buckets, SMALL.taps), drawn_case()
    card = strict_card(bytes_of(gram, 1) + 400_000, promised=1)
    sums = stream(card, block=512)
    sums.add(gram, drawn, SMALL)
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
    gram, drawn, sums = (
        Gram(SMALL.buckets, SMALL.taps),
        drawn_case(),
        stream(card._replace(xp=Failing(card.xp.memory))),
    )
    sums.add(gram, drawn, SMALL)
    sums.settle(gram)
    assert Failing.calls > 100 and sums.most < SMALL.buckets
    assert_same_sums(gram, cpu_sums(drawn))


def test_a_card_with_too_little_memory_for_anything_is_said():
    with pytest.raises(UserError, match="too little free memory"):
        stream(strict_card(10_000)).add(Gram(SMALL.buckets, SMALL.taps), drawn_case(), SMALL)


# ---- several cards


def test_the_stand_in_keeps_cards_apart():
    first, second = strict_card(number=0), strict_card(number=1)
    array = first.xp.asarray(np.arange(3.0))
    with second.use():
        other = second.xp.asarray(np.arange(3.0))
        for wrong in (
            lambda: array + 1,
            lambda: other + array,
            lambda: first.xp.zeros(3),
            lambda: first.to_host(array),
            lambda: second.xp.take(array, other),
            lambda: other.__setitem__(slice(None), array),
        ):
            with pytest.raises(RuntimeError, match="card 0"):
                wrong()
    for wrong in (lambda: other + 1, lambda: second.to_host(other), lambda: second.xp.zeros(3)):
        with pytest.raises(RuntimeError, match="card 1"):
            wrong()


def sum_on(cards, gram, volumes):
    """Sum volumes as `learning.sum_samples` does.

    That is on whichever card is idle, in a thread for each and one more.
    """
    sums = Cards(cards)

    def add(drawn):
        with sums.place() as place:
            place.add(gram, drawn, SMALL)
        return drawn.voxels.size

    for drawn, added in in_turn(add, volumes, sums.ahead):
        assert added() == drawn.voxels.size
    with sums.settled(gram):
        pass
    return sums


@pytest.mark.parametrize("room", [None, 9, 3])  # buckets that fit on a card
def test_sums_of_several_cards_are_added_at_the_end(room):
    gram, expected = Gram(SMALL.buckets, SMALL.taps), Gram(SMALL.buckets, SMALL.taps)
    size = bytes_of(gram, room) + 1_500_000 if room else 1 << 40
    cards = [strict_card(size, promised=1 << 40, number=number) for number in range(3)]
    volumes = [drawn_case(seed=seed) for seed in range(8)]
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
    gram, expected = Gram(SMALL.buckets, SMALL.taps), Gram(SMALL.buckets, SMALL.taps)
    volumes = [drawn_case(seed=seed) for seed in range(8)]
    for drawn in volumes:
        cpu_sums(drawn, gram=expected)
    sum_on(cards, gram, volumes)
    assert_same_sums(gram, expected)


# ---- solving


@CARDS
def test_a_batch_of_filters_is_what_the_cpu_solves_for(make_card):
    gram, g0 = random_gram(SMALL, 200), np.random.default_rng(5).standard_normal(SMALL.taps) / 10
    found = solve_batch(make_card(), gram.packed[:5], gram.side, 10.0, g0)
    expected = [ridge_filter(unpacked(packed, gram.side), 10.0, g0) for packed in gram.packed[:5]]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@CARDS
def test_filters_solved_on_a_card_are_those_of_the_cpu(make_card):
    gram, told = random_gram(SMALL, 200, empty=(0, 7, 35)), []
    h = matrix_compute.solve_groups([gram], SMALL, told.append, partial(ridge_filters, make_card()))
    assert h.dtype == np.float32 and sum(told) == 33
    np.testing.assert_allclose(h, solve(gram, SMALL), rtol=1e-5, atol=1e-7)


def test_out_of_memory_halves_the_batch_and_the_filters_are_the_same():
    gram = random_gram(SMALL, 200)
    card = strict_card(20 * gram.side**2 * 8, promised=1 << 40)
    h = matrix_compute.solve_groups([gram], SMALL, solve_buckets=partial(ridge_filters, card))
    assert card.xp.memory.refused >= 2
    np.testing.assert_allclose(h, solve(gram, SMALL), rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match="too little free memory"):
        matrix_compute.solve_groups(
            [gram], SMALL, solve_buckets=partial(ridge_filters, strict_card(gram.side**2 * 8))
        )


def test_the_plan_for_solving_holds():
    gram = random_gram(SMALL, 200)
    card = strict_card(30 * gram.side**2 * 8)
    matrix_compute.solve_groups([gram], SMALL, solve_buckets=partial(ridge_filters, card))
    assert not card.xp.memory.refused


def test_a_factor_that_came_out_as_no_numbers_is_not_taken():
    # As CuPy's cholesky fails.
    card = numpy_card()._replace(solve_triangular=lambda factor, vector, **_: vector * np.nan)
    with pytest.raises(np.linalg.LinAlgError):
        solve_batch(
            card, random_gram(SMALL, 200).packed[:2], SMALL.taps + 1, 10.0, np.zeros(SMALL.taps)
        )


# ---- applying


@CARDS
@pytest.mark.parametrize("tile", [8192, 100])
def test_a_volume_restored_on_a_card_is_that_of_the_cpu(make_card, tile, monkeypatch):
    monkeypatch.setattr(gpu_compute, "TILE", tile)
    (pair, voxels, bucket), rng = random_samples(), np.random.default_rng(6)
    h = (rng.standard_normal((SMALL.buckets, SMALL.taps)) / 20 + 1 / SMALL.taps).astype(np.float32)
    arguments = pair.lr, voxels, bucket, h, SMALL.filter_len
    sr, expected = gpu_compute.filter_voxels(make_card(), *arguments), filter_voxels(*arguments)
    assert sr.dtype == np.float32 and sr.shape == pair.lr.shape and sr.min() >= 0 and sr.max() <= 1
    np.testing.assert_allclose(sr, expected, rtol=0, atol=1e-5)


def test_a_brain_restored_on_a_card_is_that_of_the_cpu(golden):
    card = partial(gpu_compute.filter_voxels, strict_card())
    h = (
        np.random.default_rng(7)
        .random((golden.settings.buckets, golden.settings.taps))
        .astype(np.float32)
        / 800
    )
    boundaries = Boundaries(golden.strength_boundary, golden.coherence_boundary)
    np.testing.assert_allclose(
        apply_filters(golden.lr, h, boundaries, golden.settings, card),
        apply_filters(golden.lr, h, boundaries, golden.settings),
        rtol=0,
        atol=1e-5,
    )


def test_out_of_memory_halves_the_tile_and_the_volume_is_the_same():
    pair, voxels, bucket = random_samples()
    h = np.full((SMALL.buckets, SMALL.taps), 1 / SMALL.taps, np.float32)
    arguments = pair.lr, voxels, bucket, h, SMALL.filter_len
    card = strict_card(250_000)
    np.testing.assert_allclose(
        gpu_compute.filter_voxels(card, *arguments), filter_voxels(*arguments), rtol=0, atol=1e-5
    )
    assert card.xp.memory.refused >= 1
    with pytest.raises(UserError, match="too little free memory"):
        gpu_compute.filter_voxels(strict_card(10_000), *arguments)


def test_places_in_a_volume_of_two_thousand_million_voxels_take_eight_bytes():
    assert gpu_compute.index_type(np.broadcast_to(np.float32(0), (1290, 1290, 1290))) == np.int32
    assert gpu_compute.index_type(np.broadcast_to(np.float32(0), (1291, 1291, 1291))) == np.int64


# ---- on a card only


@pytest.mark.gpu
@pytest.mark.parametrize("planned", [True, False])
def test_a_card_that_others_have_filled_sums_in_groups(planned):
    card = real_card()
    settings = Settings(q_angle_p=2, q_angle_t=2)
    drawn = drawn_case(settings, shape=(24, 24, 24))
    gram = Gram(settings.buckets, settings.taps)
    # 240 MB are left, all sums take 256 MB.
    hog = card.xp.zeros(max(int(card.free()) - 240_000_000, 0), card.xp.uint8)
    sums = stream(card if planned else card._replace(free=lambda: 1 << 40), block=256)
    sums.add(gram, drawn, settings)
    sums.settle(gram)
    del hog
    assert 1 <= sums.most < settings.buckets
    assert_same_sums(gram, cpu_sums(drawn, settings))


@pytest.mark.gpu
def test_a_cards_products_are_not_rounded_to_tf32():
    card = real_card()
    rows = np.random.default_rng(8).random((1024, 600), np.float32)
    array = card.xp.asarray(rows)
    found, exact = card.to_host(array.T @ array), rows.T.astype(np.float64) @ rows
    assert np.abs(found / exact - 1).max() < 1e-5  # TF32 keeps eleven bits: 5e-4 a factor
