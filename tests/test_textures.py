import numpy as np
import pytest
import torch

from datasets import textures


def test_textures_are_a_function_of_number_and_seed():
    few, many = (textures.procedural_patches(count, 48, seed=1) for count in (3, 5))
    assert few.shape == (3, 48, 48, 3) and few.dtype == torch.uint8
    assert torch.equal(few, many[:3])
    assert not torch.equal(few, textures.procedural_patches(3, 48, seed=2))


@pytest.mark.parametrize("kind", textures.KINDS)
def test_every_kind_is_a_picture(kind):
    for seed in range(8):
        picture = kind(np.random.default_rng(seed), 64)
        assert picture.shape == (64, 64, 3) and picture.min() >= 0 and picture.max() <= 1
        assert (np.ptp(picture, (0, 1)).max() > 0) == (kind is not textures.flat)


def test_textures_differ_in_colour_and_contrast():
    windows = textures.procedural_patches(24, 64).double().numpy()
    assert windows.mean((1, 2, 3)).std() > 25 and np.ptp(windows.std((1, 2)).mean(1)) > 25


@pytest.mark.parametrize("slope", [0.5, 1.0, 1.5])
def test_noise_falls_with_frequency_as_asked(slope, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(textures.math, "exp", lambda x: 1.0)  # alike in x and y
    field = textures._noise(rng, 128, slope)
    amplitude = np.abs(np.fft.fft2(field - field.mean()))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    inner = (radius > 0.03) & (radius < 0.3)  # clipping adds high frequencies, few waves fit into low ones
    fitted = -np.polyfit(np.log(radius[inner]), np.log(amplitude[inner]), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.15)


def test_patterns_repeat():
    """At some shift a pattern comes back to itself, and noise does not."""

    def best(field):
        field = field - field.mean()
        power = np.abs(np.fft.fft2(field, (256, 256))) ** 2
        overlap = np.abs(np.fft.fft2(np.ones((128, 128)), (256, 256))) ** 2
        correlation = np.fft.ifft2(power).real / np.fft.ifft2(overlap).real.clip(1)
        shifts = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(256, 1 / 256)]))
        return correlation[(shifts > 20) & (shifts < 64)].max() / correlation[0, 0]

    patterns = [best(textures._pattern(np.random.default_rng(seed), 128)) for seed in range(20)]
    noise = [best(textures._noise(np.random.default_rng(seed), 128, 1.0)) for seed in range(20)]
    assert np.median(patterns) > 0.7 > np.median(noise) + 0.2
