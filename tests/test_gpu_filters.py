"""gpu/compute.py: filters solved for and applied, with NumPy or a strict stand-in as CuPy.

Tests marked `gpu` run on a card, where there is one.
"""

from functools import partial

import numpy as np
import pytest
from gram_cases import MEDIUM, random_gram, random_samples
from strict_card import CARDS, numpy_card, real_card, strict_card

import matrix_compute
from gpu import compute as gpu_compute
from gpu.compute import ridge_filters, solve_batch
from hashtable import Boundaries
from machine.errors import UserError
from matrix_compute import apply_filters, ridge_filter, solve, unpacked
from published.apply_filters import filter_voxels

# ---- solving


@CARDS
def test_a_batch_of_filters_is_what_the_cpu_solves_for(make_card):
    gram, g0 = random_gram(MEDIUM, 200), np.random.default_rng(5).standard_normal(MEDIUM.taps) / 10
    found = solve_batch(make_card(), gram.packed[:5], gram.side, 10.0, g0)
    expected = [ridge_filter(unpacked(packed, gram.side), 10.0, g0) for packed in gram.packed[:5]]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@CARDS
def test_filters_solved_on_a_card_are_those_of_the_cpu(make_card):
    gram, told = random_gram(MEDIUM, 200, empty=(0, 7, 35)), []
    h = matrix_compute.solve_groups(
        [gram], MEDIUM, told.append, partial(ridge_filters, make_card())
    )
    assert h.dtype == np.float32 and sum(told) == 33
    np.testing.assert_allclose(h, solve(gram, MEDIUM), rtol=1e-5, atol=1e-7)


def test_out_of_memory_halves_the_batch_and_the_filters_are_the_same():
    gram = random_gram(MEDIUM, 200)
    card = strict_card(20 * gram.side**2 * 8, promised=1 << 40)
    h = matrix_compute.solve_groups([gram], MEDIUM, solve_buckets=partial(ridge_filters, card))
    assert card.xp.memory.refused >= 2
    np.testing.assert_allclose(h, solve(gram, MEDIUM), rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match="too little free memory"):
        matrix_compute.solve_groups(
            [gram], MEDIUM, solve_buckets=partial(ridge_filters, strict_card(gram.side**2 * 8))
        )


def test_the_plan_for_solving_holds():
    gram = random_gram(MEDIUM, 200)
    card = strict_card(30 * gram.side**2 * 8)
    matrix_compute.solve_groups([gram], MEDIUM, solve_buckets=partial(ridge_filters, card))
    assert not card.xp.memory.refused


def test_a_factor_that_came_out_as_no_numbers_is_not_taken():
    # As CuPy's cholesky fails.
    card = numpy_card()._replace(solve_triangular=lambda factor, vector, **_: vector * np.nan)
    with pytest.raises(np.linalg.LinAlgError):
        solve_batch(
            card, random_gram(MEDIUM, 200).packed[:2], MEDIUM.taps + 1, 10.0, np.zeros(MEDIUM.taps)
        )


# ---- applying


@CARDS
@pytest.mark.parametrize("tile", [8192, 100])
def test_a_volume_restored_on_a_card_is_that_of_the_cpu(make_card, tile, monkeypatch):
    monkeypatch.setattr(gpu_compute, "TILE", tile)
    (pair, voxels, bucket), rng = random_samples(), np.random.default_rng(6)
    h = (rng.standard_normal((MEDIUM.buckets, MEDIUM.taps)) / 20 + 1 / MEDIUM.taps).astype(
        np.float32
    )
    arguments = pair.lr, voxels, bucket, h, MEDIUM.filter_len
    sr, expected = gpu_compute.filter_voxels(make_card(), *arguments), filter_voxels(*arguments)
    assert sr.dtype == np.float32 and sr.shape == pair.lr.shape and sr.min() >= 0 and sr.max() <= 1
    np.testing.assert_allclose(sr, expected, rtol=0, atol=1e-5)


def test_a_brain_restored_on_a_card_is_that_of_the_cpu(golden):
    card = partial(gpu_compute.filter_voxels, strict_card())
    shape = golden.method.buckets, golden.method.taps
    h = np.random.default_rng(7).random(shape).astype(np.float32) / 800
    boundaries = Boundaries(golden.strength_boundary, golden.coherence_boundary)
    np.testing.assert_allclose(
        apply_filters(golden.lr, h, boundaries, golden.method, card),
        apply_filters(golden.lr, h, boundaries, golden.method),
        rtol=0,
        atol=1e-5,
    )


def test_out_of_memory_halves_the_tile_and_the_volume_is_the_same():
    pair, voxels, bucket = random_samples()
    h = np.full((MEDIUM.buckets, MEDIUM.taps), 1 / MEDIUM.taps, np.float32)
    arguments = pair.lr, voxels, bucket, h, MEDIUM.filter_len
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


@pytest.mark.gpu
def test_a_cards_products_are_not_rounded_to_tf32():
    card = real_card()
    rows = np.random.default_rng(8).random((1024, 600), np.float32)
    array = card.xp.asarray(rows)
    found, exact = card.to_host(array.T @ array), rows.T.astype(np.float64) @ rows
    assert np.abs(found / exact - 1).max() < 1e-5  # TF32 keeps eleven bits: 5e-4 a factor
