"""Scores against the published implementation's values, scikit-image's, and closed forms."""

import math

import numpy as np
import pytest
import torch
from conftest import formula_image

from utils import metrics


def noisy_pair(height, width, seed):
    """The reference values' recipe: a picture with noise, and the picture."""
    target = formula_image(height, width, seed)
    noise = np.random.default_rng(seed + 9).normal(0, 0.03, target.shape).astype(np.float32)
    return (target + torch.from_numpy(noise)).clamp(0, 1)[None], target[None]


@pytest.mark.parametrize("size", [(64, 96, 10), (128, 64, 20)])
def test_scores_are_those_of_the_published_code(golden, size):
    pair = noisy_pair(*size)
    got = [metric(*pair).item() for metric in (metrics.psnr, metrics.ssim, metrics.ie)]
    np.testing.assert_allclose(got, golden[f"metrics/{size[0]}x{size[1]}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96, 1), (11, 40, 2), (97, 31, 3)])
def test_2d_ssim_is_scikit_images(size):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    prediction, target = noisy_pair(*size)
    expected = structural_similarity(
        prediction[0].numpy(),
        target[0].numpy(),
        channel_axis=0,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert metrics.ssim_2d(prediction, target).item() == pytest.approx(expected, abs=1e-4)


def test_3d_ssim_is_a_full_convolution_with_the_cubic_window():
    prediction, target = noisy_pair(20, 24, 4)
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.einsum("i,j,k->ijk", line, line, line) / line.sum() ** 3

    def blur(x):
        padded = np.pad(x, 5, mode="edge")
        views = np.lib.stride_tricks.sliding_window_view(padded, window.shape)
        return np.einsum("chwijk,ijk->chw", views, window)

    x, y = (v[0].double().numpy() for v in (prediction, target))
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    expected = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert metrics.ssim(prediction, target).item() == pytest.approx(expected.mean(), abs=1e-9)


def test_closed_forms():
    target = torch.full((1, 3, 16, 16), 0.5)
    assert metrics.psnr(target + 0.1, target).item() == pytest.approx(20, abs=1e-5)
    assert metrics.psnr(target, target).item() == math.inf
    assert metrics.ie(target + 10.4 / 255, target).item() == 10  # both are rounded first
    assert metrics.ssim(target, target).item() == metrics.ssim_2d(target, target).item() == 1
    # Without structure only luminance is left: (2ab + c) / (a^2 + b^2 + c).
    expected = (2 * 0.5 * 0.3 + 1e-4) / (0.25 + 0.09 + 1e-4)
    assert metrics.ssim(target - 0.2, target).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim, metrics.ssim_2d, metrics.ie])
def test_a_batch_scores_exactly_as_its_images_one_by_one(metric):
    pairs = [noisy_pair(32, 48, seed) for seed in range(3)]
    together = metric(*(torch.cat(side) for side in zip(*pairs)))
    assert together.shape == (3,)
    assert together.tolist() == [metric(*pair).item() for pair in pairs]


def test_2d_ssim_names_the_size_of_an_image_smaller_than_its_window():
    with pytest.raises(ValueError, match="40x10"):
        metrics.ssim_2d(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scores_on_the_gpu_are_those_on_the_cpu():
    pair = noisy_pair(64, 96, 5)
    for metric in (metrics.psnr, metrics.ssim, metrics.ssim_2d, metrics.ie):
        assert metric(*(x.cuda() for x in pair)).item() == pytest.approx(metric(*pair).item(), abs=1e-9)
