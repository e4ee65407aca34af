"""Baselines against closed forms and against their definitions."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from conftest import formula_image, formula_weights

import models
from models import baselines

TIMES = [0.25, 0.5, 0.75]


@pytest.fixture(scope="module")
def pair():
    """A picture and the same moved by 4 pixels to the right."""
    scene = formula_image(64, 104, 3)
    return scene[..., 4:-4], scene[..., :-8]


def test_repeat_gives_the_nearer_frame_and_average_weighs_by_nearness(pair):
    img0, img1 = pair
    torch.testing.assert_close(baselines.Repeat("cpu")(*pair, TIMES), torch.stack([img0, img0, img1]))
    expected = torch.stack([0.75 * img0 + 0.25 * img1, (img0 + img1) / 2, 0.25 * img0 + 0.75 * img1])
    torch.testing.assert_close(baselines.Average("cpu")(*pair, TIMES), expected)


def test_dis_is_the_procedure_that_its_published_floor_was_measured_with():
    img0, img1 = ((4 * formula_image(64, 96, seed) - 1.5).clamp(0, 1) for seed in (1, 2))  # edges of black and white
    frames = [np.ascontiguousarray(x.movedim(0, -1).numpy()) for x in (img0, img1)]
    grey = [cv2.cvtColor((frame * 255).round().astype(np.uint8), cv2.COLOR_RGB2GRAY) for frame in frames]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    f01, f10 = search.calc(*grey, None), search.calc(*grey[::-1], None)
    y, x = np.mgrid[:64, :96].astype(np.float32)
    moved = [
        cv2.remap(frame, x + flow[..., 0], y + flow[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        for frame, flow in zip(frames, ((f10 - f01) / 4, (f01 - f10) / 4))
    ]
    average = (moved[0] + moved[1]) / 2
    got = baselines.Dis("cpu")(img0, img1)[0].movedim(0, -1).numpy()
    assert average.min() < 0 and average.max() > 1  # cubic sampling overshoots
    np.testing.assert_allclose(got, np.clip(average, 0, 1), atol=1e-6)


def test_dis_follows_a_shift_at_any_time(pair):
    scene = formula_image(64, 104, 3)
    for t, frame in zip(TIMES, baselines.Dis("cpu")(*pair, TIMES)):
        shift = int(4 * t)
        truth = scene[..., 4 - shift : 100 - shift]
        inside = (..., slice(8, -8), slice(8, -8))
        assert (frame[inside] - truth[inside]).abs().mean() < 0.005


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_a_batch_is_its_pairs_one_by_one(name, pair):
    call = baselines.interpolator(name, device="cpu")
    flipped = [x.flip(-1) for x in pair]
    together = call(*(torch.stack(side) for side in zip(pair, flipped)), TIMES)
    assert together.shape == (2, 3, 3, 64, 96)
    torch.testing.assert_close(together, torch.stack([call(*pair, TIMES), call(*flipped, TIMES)]))


@pytest.mark.parametrize("name", [*baselines.BASELINES, "IFRNet_S"])
def test_times_may_be_any_numbers_and_frames_that_overshoot_give_frames_in_range(name, pair):
    call, pair = baselines.interpolator(name, device="cpu"), [2.2 * x - 0.6 for x in pair]
    expected = call(*pair, [0.25])
    assert 0 <= expected.min() and expected.max() <= 1
    for t in (Fraction(1, 4), np.array(0.25), np.float64(0.25), torch.tensor(0.25)):
        assert torch.equal(call(*pair, [t]), expected)


@pytest.mark.parametrize("name", [*baselines.BASELINES, "IFRNet_S"])
def test_frames_that_take_gradients_give_frames_without_a_graph(name, pair):
    call, leaves = baselines.interpolator(name, device="cpu"), [x.clone().requires_grad_(True) for x in pair]
    for frame, expected in zip([*call(*leaves), *call.each(*leaves)], 2 * [*call(*pair)]):
        assert not frame.requires_grad and torch.equal(frame, expected)


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_small_and_odd_sizes_are_answered_and_wrong_input_is_refused(name, pair):
    call = baselines.interpolator(name, device="cpu")
    assert call(torch.rand(3, 3, 5), torch.rand(3, 3, 5)).shape == (1, 3, 3, 5)
    with pytest.raises(ValueError, match="different sizes: 96x64 and 95x64"):
        call(pair[0], pair[1][..., 1:])
    with pytest.raises(ValueError, match="out of range"):
        call(*pair, [1.0])


def test_a_network_is_found_by_its_checkpoint_and_refused_under_a_wrong_name(tmp_path, pair):
    path = tmp_path / "weights.pth"
    torch.save(formula_weights(models.build("IFRNet_S")).state_dict(), path)
    expected = models.Interpolator(models.load(path), "cpu")(*pair)
    for name in (None, "IFRNet_S"):
        torch.testing.assert_close(baselines.interpolator(name, path, "cpu")(*pair), expected)
    with pytest.raises(ValueError, match="weights.pth: holds an IFRNet_S, not an IFRNet_L"):
        baselines.interpolator("IFRNet_L", path, "cpu")
    with pytest.raises(ValueError, match="average has no weights"):
        baselines.interpolator("average", path, "cpu")
    with pytest.raises(ValueError, match="unknown model 'IFRNet_0'; choose one of IFRNet_S, .*dis"):
        baselines.interpolator("IFRNet_0", device="cpu")
