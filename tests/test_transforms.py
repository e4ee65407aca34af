"""Every move against re-warping: a frame that its flow warps onto another still does so afterwards."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import formula_image
from torch.utils.data import default_collate

from datasets import transforms
from datasets.transforms import Augment, Stack, apply, finish, roll
from models.layers import warp
from utils.io import to_float, to_uint8

MOVES = [
    transforms.flip_vertical,
    transforms.flip_horizontal,
    transforms.transpose,
    transforms.reverse_time,
    transforms.reverse_channels,
]


def smooth_flow(height, width):
    """Two different fields, a few pixels at most, so that no axis and no pair can be taken for another."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [2 + np.sin(x / 20), -1 + np.cos(y / 15), -3 + np.sin(y / 25), 0.5 + np.sin((x + y) / 30)]
    return np.stack(waves, 2).astype(np.float32)


def smooth_stack(height=48, width=80):
    """The frame in the middle, and two frames of which it is the backward warp, all from one smooth picture.

    Frames 0 and 1 are given; the middle one is made from each by the flow, so there are two truths: `between` them.
    """
    flow = smooth_flow(height, width)
    frames = [formula_image(height, width, 7), formula_image(height, width, 8)]
    planes = torch.from_numpy(flow).permute(2, 0, 1)[None]
    middles = [warp(frame[None], planes[:, k : k + 2])[0] for frame, k in zip(frames, (0, 2))]
    stack = to_uint8(torch.stack([frames[0], *middles, frames[1]]))
    return Stack(stack, flow, np.float32([0.25, 0.5]))


def errors(stack, first, second):
    """Mean difference, in grey levels, of the two middles to what the flow makes of the outer frames."""
    planes = torch.from_numpy(np.ascontiguousarray(stack.flow)).permute(2, 0, 1)[None]
    result = []
    for source, pair, target in ((0, planes[:, :2], first), (-1, planes[:, 2:], second)):
        warped = warp(to_float(stack.frames[source])[None], pair)[0]
        inner = (warped - to_float(stack.frames[target])).abs()[:, 8:-8, 8:-8]
        result.append(255 * inner.mean().item())
    return result


@pytest.mark.parametrize("move", [*MOVES, transforms.zoom], ids=lambda move: move.__name__)
def test_flow_follows_every_move(move):
    stack = move(smooth_stack())
    assert max(errors(stack, 1, 2)) < 1  # rounding to 8 bits and, for zoom, a second interpolation
    assert min(errors(stack._replace(flow=-stack.flow), 1, 2)) > 5  # so that the test can fail


def test_flow_follows_a_crop():
    stack = transforms.crop(smooth_stack(), 5, 9, 32, 48)
    assert stack.frames.shape == (4, 32, 48, 3) and stack.flow.shape == (32, 48, 4)
    assert max(errors(stack, 1, 2)) < 1


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
def test_every_move_twice_is_none(move):
    before = smooth_stack()
    once, twice = move(before), move(move(before))
    assert not np.array_equal(once.frames, before.frames)
    for then, now in zip(before, twice):
        np.testing.assert_array_equal(then, now)


def test_time_reversal_turns_the_times_and_the_order():
    stack = smooth_stack()
    turned = transforms.reverse_time(stack)
    np.testing.assert_allclose(turned.t, [0.5, 0.75])
    np.testing.assert_array_equal(turned.frames[0], stack.frames[3])
    np.testing.assert_array_equal(turned.flow[..., :2], stack.flow[..., 2:])


def test_moves_without_flow_and_their_sample():
    stack = smooth_stack(64, 64)._replace(flow=None)
    for move in (*MOVES, transforms.zoom):
        stack = move(stack)
    sample = stack.sample()
    assert stack.flow is None and sample.flow.isnan().all() and sample.flow.shape == (4, 128, 128)
    assert sample.imgt.shape == (2, 3, 128, 128) and sample.t.shape == (2,)
    assert sample.img0.dtype == torch.float32 and 0 <= sample.img0.min() and sample.img0.max() <= 1


def test_one_target_loses_its_dimension():
    stack = smooth_stack()
    sample = Stack(stack.frames[:3], stack.flow, np.float32([0.5])).sample()
    assert sample.imgt.shape == sample.img0.shape == (3, 48, 80) and sample.t == 0.5 and sample.t.shape == ()


@pytest.mark.parametrize(("vertical", "horizontal"), [(True, True), (True, False), (False, True)])
def test_the_paper_order_of_moves(vertical, horizontal):
    """It shows where one flip falls alone: both together and a transposition may change places."""
    stack, size = smooth_stack(48, 80), 32
    dice = transforms.Dice(True, 11, 22, True, vertical, horizontal, True, True)
    expected = transforms.crop(transforms.zoom(stack), 11, 22, size, size)
    flips = [move for move, falls in zip(MOVES[:2], (vertical, horizontal)) if falls]
    for move in (transforms.reverse_channels, *flips, *MOVES[2:4]):
        expected = move(expected)
    for got, want in zip(apply(stack, dice, size), expected):
        np.testing.assert_array_equal(got, want)
    assert max(errors(apply(stack, dice, size), 1, 2)) < 1


def test_dice_fall_as_often_as_the_paper_says():
    rng, n = np.random.default_rng(0), 4000
    rolls = [roll(rng, 48, 80, 32) for _ in range(n)]
    paper = {"zoom": 0.1, "reverse_channels": 0.5, "flip_vertical": 0.3, "flip_horizontal": 0.5, "transpose": 0.05}
    for name, p in {**paper, "reverse_time": 0.5}.items():
        assert abs(np.mean([getattr(dice, name) for dice in rolls]) - p) < 4 * (p * (1 - p) / n) ** 0.5, name
    for zoomed in (False, True):  # every corner that the frames allow, and none beyond
        factor = 1 + zoomed
        chosen = [dice for dice in rolls if dice.zoom == zoomed]
        assert {dice.top for dice in chosen} >= set(range(48 * factor - 32 + 1))
        assert max(dice.top for dice in chosen) <= 48 * factor - 32
        assert 80 * factor - 32 - 5 < max(dice.left for dice in chosen) <= 80 * factor - 32


def test_dice_depend_on_seed_epoch_and_index_alone():
    dice = {key: Augment(32, key[0]).dice(key[2], key[1], 480, 800) for key in np.ndindex(3, 3, 3)}
    assert len(set(dice.values())) == 27
    assert all(Augment(32, key[0]).dice(key[2], key[1], 480, 800) == value for key, value in dice.items())


def test_a_crop_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="frames of 80x48 hold no crop of 64x64"):
        Augment(64)(smooth_stack(), 0, 0)


def test_centre_crop_is_the_largest_that_the_network_takes():
    stack = smooth_stack(50, 90)
    inner = transforms.centre_crop(stack)
    assert inner.frames.shape[1:3] == inner.flow.shape[:2] == (48, 80)
    np.testing.assert_array_equal(inner.frames, stack.frames[:, 1:49, 5:85])
    assert transforms.centre_crop(stack, limit=32).frames.shape[1:3] == (32, 32)
    with pytest.raises(ValueError, match="15x48"):
        transforms.centre_crop(smooth_stack(48, 15))


# On the device


def raws(stack, dice, size, monkeypatch):
    """A batch of Raw, one for each of `dice`."""
    take = Augment(size)
    batch = []
    for one in dice:
        monkeypatch.setattr(take, "dice", lambda *args, one=one: one)
        batch.append(take(stack, 0, 0))
    return default_collate(batch)


@pytest.mark.parametrize(("targets", "size"), [(1, 32), (2, 32), (1, 31)])
def test_the_device_makes_what_the_cpu_makes_of_the_same_dice(monkeypatch, targets, size):
    stack = smooth_stack(48, 80)
    stack = stack._replace(frames=stack.frames[: targets + 2], t=stack.t[:targets])
    rng = np.random.default_rng(1)
    rolls = [roll(rng, 48, 80, size) for _ in range(40)]
    rolls += [d._replace(zoom=True, top=min(2 * d.top, 64), transpose=True) for d in rolls[:12]]
    corners = [(0, 0), (64, 128), (1, 127), (63, 1)]  # where a zoomed crop meets the border of the frame
    rolls += [rolls[k]._replace(zoom=True, top=top, left=left) for k, (top, left) in enumerate(corners)]
    batch = finish(raws(stack, rolls, size, monkeypatch), torch.device("cpu"))
    for k, dice in enumerate(rolls):
        expected = apply(stack, dice, size).sample()
        # OpenCV rounds a zoomed pixel by its own arithmetic: one level of 255.
        tolerance = 1.01 / 255 if dice.zoom else 0
        for got, want in zip((batch.img0[k], batch.imgt[k], batch.img1[k]), expected[:3]):
            torch.testing.assert_close(got, want, atol=tolerance, rtol=0)
        torch.testing.assert_close(batch.t[k], expected.t)
        torch.testing.assert_close(batch.flow[k], expected.flow, atol=1e-5, rtol=0)
    assert batch.imgt.shape[1:] == expected.imgt.shape


def test_frames_zoomed_on_the_device_are_rounded_and_not_darkened(monkeypatch):
    stack = smooth_stack(48, 80)
    dice = transforms.Dice(True, 11, 22, False, False, False, False, False)
    got = finish(raws(stack, [dice], 32, monkeypatch), torch.device("cpu")).img0[0]
    planes = torch.tensor(stack.frames[0], dtype=torch.float64).permute(2, 0, 1)
    exact = F.interpolate(planes[None], scale_factor=2, mode="bilinear")[0, :, 11:43, 22:54]
    assert (255 * got - exact).abs().max() < 0.501


def test_the_device_knows_flow_in_fixed_point_and_none(monkeypatch):
    stack = smooth_stack(48, 80)
    steps = np.round(stack.flow * transforms.FLOW_STEPS).astype(np.int16)
    steps[20:24, 30:40] = transforms.FLOW_UNKNOWN
    exact = np.where(steps == transforms.FLOW_UNKNOWN, np.nan, steps / np.float32(transforms.FLOW_STEPS))
    rolls = [roll(np.random.default_rng(seed), 48, 80, 32) for seed in range(20)]
    fixed, floating = (
        finish(raws(stack._replace(flow=flow), rolls, 32, monkeypatch), torch.device("cpu"))
        for flow in (steps, exact.astype(np.float32))
    )
    assert floating.flow.isnan().any() and not floating.flow.isnan().all()
    torch.testing.assert_close(fixed.flow, floating.flow, equal_nan=True, atol=1e-5, rtol=0)
    none = finish(raws(stack._replace(flow=None), rolls, 32, monkeypatch), torch.device("cpu"))
    assert none.flow.isnan().all() and none.flow.shape == (20, 4, 32, 32)
    torch.testing.assert_close(none.img0, fixed.img0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_makes_what_the_cpu_makes(monkeypatch):
    rolls = [roll(np.random.default_rng(seed), 48, 80, 32) for seed in range(40)]
    batch = raws(smooth_stack(48, 80), rolls, 32, monkeypatch)
    gpu = finish(batch, torch.device("cuda"))
    for a, b in zip(finish(batch, torch.device("cpu")), gpu):
        torch.testing.assert_close(a, b.cpu(), atol=1.01 / 255, rtol=1e-5)
