"""metrics.py: SSIM against scikit-image's."""
import numpy as np
import pytest

import threads
from metrics import decibel, structural_similarity


@pytest.fixture
def volumes():
    """A smooth volume and a noisy copy of it, partly black."""
    rng = np.random.default_rng(60)
    axes = np.meshgrid(*map(np.arange, (21, 24, 37)), indexing="ij")
    smooth = sum(np.sin(axis / 5) for axis in axes).astype(np.float32) / 6 + 0.5
    smooth[:6] = 0
    noisy = np.clip(smooth + rng.normal(0, 0.05, smooth.shape), 0, 1).astype(np.float32)
    noisy[:4] = 0
    return smooth, noisy


@pytest.mark.parametrize("shape", [(21, 24, 37), (7, 7, 7), (8, 20, 9)])
def test_ssim_is_that_of_scikit_image(volumes, shape):
    metrics = pytest.importorskip("skimage.metrics")
    first, second = (volume[tuple(map(slice, shape))] for volume in volumes)
    mean, similarity = structural_similarity(first, second)
    precise = (volume.astype(np.float64) for volume in (first, second))
    expected, map_of_it = metrics.structural_similarity(*precise, data_range=1.0, full=True)
    assert mean == pytest.approx(expected, abs=1e-7)
    np.testing.assert_allclose(similarity, map_of_it, atol=1e-6)


def test_ssim_does_not_depend_on_the_number_of_threads(volumes, monkeypatch):
    found = []
    for number in (1, 2, 5):
        monkeypatch.setattr(threads, "thread_count", lambda number=number: number)
        found.append(structural_similarity(*volumes))
    for mean, similarity in found[1:]:
        assert mean == found[0][0]
        np.testing.assert_array_equal(similarity, found[0][1])


def test_equal_volumes_are_alike_to_the_last_bit_even_when_smaller_than_the_window():
    tiny = np.random.default_rng(61).random((3, 5, 4), np.float32)
    mean, similarity = structural_similarity(tiny, tiny)
    assert mean == pytest.approx(1, abs=1e-6) and similarity.shape == tiny.shape


def test_psnr():
    assert decibel(0) == np.inf
    assert decibel(0.01) == pytest.approx(20)
