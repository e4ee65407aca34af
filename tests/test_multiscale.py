"""Frames made of estimates at several scales (models/multiscale.py)."""

import pytest
import torch
import torch.nn.functional as F
from conftest import formula_image, formula_weights

import models
from models import multiscale
from models.layers import resize

SHIFT = 16  # pixels between the frames below
INSIDE = (..., slice(64, -64), slice(64, -64))  # of the doubt: without what the frames' borders influence


@pytest.fixture(scope="module")
def frames():
    """Two frames of a smooth random texture that moves to the right by SHIFT pixels."""
    noise = torch.rand(1, 3, 40, 84, generator=torch.Generator().manual_seed(0))
    wide = resize(noise, 4.0)
    return wide[..., SHIFT:], wide[..., :-SHIFT]


def flow(shift, height, width, factor=1.0):
    """The flow at t = 0.5 of a motion to the right, at `factor` times the frames' size."""
    one = torch.zeros(1, 4, round(height * factor), round(width * factor))
    one[:, 0], one[:, 2] = -shift / 2 * factor, shift / 2 * factor
    return one


def doubt(flow, img0, img1):
    return multiscale.doubt(flow, multiscale.shrink(img0), multiscale.shrink(img1))


@pytest.mark.parametrize("side, size", [(5, (7, 9)), (25, (64, 48)), (25, (1, 3))])
def test_means_are_those_of_pooling(side, size):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = F.avg_pool2d(x.double(), side, 1, side // 2, count_include_pad=False).float()
    torch.testing.assert_close(multiscale.mean_around(x, side), expected)


def test_a_right_flow_is_not_doubted_and_a_wrong_one_is(frames):
    height, width = frames[0].shape[-2:]
    right, wrong = (doubt(flow(shift, height, width), *frames)[INSIDE] for shift in (SHIFT, 0))
    assert right.max() < 1e-4 and wrong.min() > 0.02


def test_doubt_about_one_spot_is_its_share_of_the_square_around_it():
    """Half size, less the mean over 5x5, each channel's amount, the mean over 25x25: by hand."""
    img0 = torch.full((1, 3, 160, 160), 0.5)
    img1 = img0.clone()
    img1[:, :, 80:82, 80:82] += torch.tensor([0.3, -0.2, -0.1]).view(3, 1, 1)  # a pixel of half size
    amount = (0.3 + 0.2 + 0.1) / 3 * (24 / 25 + 24 / 25) / 25**2
    got = doubt(torch.zeros(1, 4, 160, 160), img0, img1)
    assert got[0, 0, 80, 80].item() == pytest.approx(amount, rel=1e-3)
    far = 2 * (25 // 2 + 5 // 2) + 3
    assert got[0, 0, 80, 80 + far :].max() < 1e-7 and got[0, 0, 80, 80 + far - 6] > 0


def test_light_that_drifts_is_no_reason_to_doubt(frames):
    height, width = frames[0].shape[-2:]
    drift = torch.linspace(0.05, 0.15, width)
    assert doubt(flow(SHIFT, height, width), frames[0], frames[1] + drift)[INSIDE].max() < 0.005


@pytest.mark.parametrize("factor", [0.25, 0.5])
def test_a_flow_of_another_size_means_the_same(frames, factor):
    height, width = frames[0].shape[-2:]
    expected = doubt(flow(SHIFT, height, width), *frames)
    torch.testing.assert_close(doubt(flow(SHIFT, height, width, factor), *frames), expected)


def test_of_two_frames_the_one_that_is_not_doubted_is_taken_place_by_place():
    one, other = torch.full((1, 3, 8, 8), 0.2), torch.full((1, 3, 8, 8), 0.8)
    doubt = torch.zeros(1, 1, 8, 8)
    doubt[..., :4] = 1  # the first frame is doubted on the left
    frame = multiscale.blend([one, other], [doubt, 1 - doubt])
    torch.testing.assert_close(frame[..., :4], other[..., :4])
    torch.testing.assert_close(frame[..., 4:], one[..., 4:])
    torch.testing.assert_close(multiscale.blend([one, other], [doubt, doubt]), (one + other) / 2)


def test_white_stays_white_however_shares_are_rounded():
    doubts = torch.rand(4, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) / 100
    frame = multiscale.blend([torch.ones(1, 3, 64, 64)] * 4, list(doubts))
    assert frame.max() == 1 and frame.min() > 0.999999


@pytest.mark.parametrize("mode", ["eager", "fast"])
@pytest.mark.parametrize("count", [None, 2], ids=["pair", "batch"])
def test_a_frame_lies_between_those_of_its_scales(mode, count):
    model = formula_weights(models.build("IFRNet_S"))
    img0, img1 = (formula_image(75, 131, i) for i in (0, 1))
    if count:
        img0, img1 = torch.stack([img0, img1]), torch.stack([img1, img0])
    call = models.Interpolator(model, "cpu", "fp32", scale="multi", mode=mode)
    times = [0.25, 0.5]
    frame = call(img0, img1, times)
    single = torch.stack([call(img0, img1, times, scale) for scale in multiscale.SCALES])
    assert frame.shape == single.shape[1:] and (single[0] - single[1]).abs().max() > 0.1
    assert (frame >= single.amin(0) - 1e-5).all() and (frame <= single.amax(0) + 1e-5).all()


def test_large_frames_are_seen_at_smaller_scales():
    call = models.Interpolator(models.build("IFRNet_S"), "cpu", scale="multi")
    assert call.scales(1080, 1920) == (1, 0.5, 0.25, 0.125)
    assert call.scales(2160, 3840) == (0.5, 0.25, 0.125, 0.0625)
    assert call.scales(4320, 7680) == (0.25, 0.125, 0.0625)
    assert call.scales(1080, 1920, 0.5) == (0.5,) and call.scales(2160, 3840, "auto") == (0.5,)


def scene(t):
    """A still fine texture, and a wide object that moves across it by 64 pixels from t = 0 to 1."""
    random = torch.Generator().manual_seed(3)
    fine = resize(torch.rand(1, 3, 128, 192, generator=random), 2.0)
    coarse = resize(torch.rand(1, 3, 10, 10, generator=random), 16.0)
    left = round(80 + 64 * t)
    fine[..., 48:208, left : left + 160] = coarse
    return fine


def test_large_motion_before_fine_detail_is_better_than_at_any_one_scale():
    call = models.Interpolator(models.load("IFRNet_S"), "cpu")
    img0, truth, img1 = map(scene, (0, 0.5, 1))
    error = {s: (call(img0, img1, scale=s) - truth).square().mean().item() for s in (*multiscale.SCALES, "multi")}
    assert error.pop("multi") < 0.95 * min(error.values()), error
