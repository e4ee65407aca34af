"""The terms against their definitions, written down once more, and the memory that the census keeps and takes."""

import math

import numpy as np
import pytest
import skimage.metrics
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import models
from losses import ifrnet_loss
from losses.terms import census, flow_distillation, flow_error, full_size, geometry, log_error


def features(seed, channels=5, height=12, width=16):
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed))


def by_definition(x, y, patch):
    """The mean over all pixels and neighbours, every pixel's neighbours laid out side by side."""

    def signature(z):
        batch, channels, height, width = z.shape
        neighbours = F.unfold(z, patch, padding=patch // 2).view(batch, channels, patch**2, height, width)
        v = neighbours - z.unsqueeze(2)
        return v / (0.81 + v**2).sqrt()

    q2 = (signature(x) - signature(y)) ** 2
    distance, border = q2 / (0.1 + q2), patch // 2
    distance[..., :border, :] = distance[..., -border:, :] = 0
    distance[..., :border] = distance[..., -border:] = 0
    return distance.mean()


def test_both_terms_are_their_definition():
    x, y = features(0), features(1)
    torch.testing.assert_close(geometry(x, y), by_definition(x, y, 3))
    grey = [z.mean(1, keepdim=True) for z in (x, y)]
    torch.testing.assert_close(census(x, y), by_definition(*grey, 7))


def test_the_logarithm_of_the_error_is_the_psnr_of_the_frames_one_by_one():
    target = features(0, 3)
    prediction = target + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1) * features(1, 3)
    dB = [
        skimage.metrics.peak_signal_noise_ratio(*(z.numpy() for z in pair), data_range=1)
        for pair in zip(target, prediction)
    ]
    assert -log_error(prediction, target).item() == pytest.approx(np.mean(dB), abs=0.1)
    right = target.clone().requires_grad_()
    log_error(right, target).backward()
    assert (right.grad == 0).all()


def test_the_gradient_is_that_of_the_definition():
    made, defined = ([z.requires_grad_(True) for z in (features(0), features(1))] for _ in range(2))
    geometry(*made).backward()
    by_definition(*defined, 3).backward()
    for a, b in zip(made, defined):
        torch.testing.assert_close(a.grad, b.grad)


def test_only_what_takes_a_gradient_gets_one():
    x, y = features(0).requires_grad_(True), features(1).requires_grad_(True)
    census(x, y).backward()
    assert x.grad is not None and y.grad is None  # the true frame needs none
    assert not geometry(features(0), features(1)).requires_grad
    with torch.no_grad():
        assert not geometry(x, y).requires_grad


def test_the_graph_is_freed_with_its_first_use_unless_it_is_kept():
    """A step's terms live on until those of the next step; what its backward pass needed must not."""
    x, y = features(0).requires_grad_(True), features(1)
    term = geometry(x, y)
    term.backward(retain_graph=True)
    once = x.grad.clone()
    term.backward()
    torch.testing.assert_close(x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        term.backward()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_nothing_is_larger_than_the_frames():
    x, y = features(0, 3, 32, 48).requires_grad_(True), features(1, 3, 32, 48).requires_grad_(True)
    with Largest() as seen:
        (census(x, y) + geometry(x, y)).backward()
    assert seen.elements == x.numel()
    with Largest() as seen:
        by_definition(x, y, 3).backward()
    assert seen.elements == 9 * x.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_in_half_precision_are_summed_in_single(dtype):
    """As with --amp: a sum over a step's features is beyond what float16 holds, and its gradient is scaled up first."""
    x, y = features(0, 8, 128, 128), features(1, 8, 128, 128)
    halves = x.to(dtype).requires_grad_(True), y.to(dtype).requires_grad_(True)
    term = geometry(*halves)
    assert term.dtype == torch.float32
    torch.testing.assert_close(term, geometry(*(z.detach().float() for z in halves)))
    (2.0**16 * term).backward()
    exact = x.to(dtype).float().requires_grad_(True)
    geometry(exact, halves[1].detach().float()).backward()
    assert halves[0].grad.dtype == dtype and halves[0].grad.isfinite().all()
    torch.testing.assert_close(halves[0].grad.float() / 2**16, exact.grad, rtol=1e-2, atol=1e-9)


def pyramid(seed, channels_last=False):
    """Flow of three levels with gradients, and a teacher's that is unknown in places: in one component, and in both."""
    dice = torch.Generator().manual_seed(seed)
    flows = [2 * torch.randn(2, 4, side, 2 * side, generator=dice) for side in (16, 8, 4)]
    teacher = 2 * torch.randn(2, 4, 16, 32, generator=dice)
    teacher[:, 1, 3:5], teacher[:, 2:, 7] = torch.nan, torch.inf
    layout = torch.channels_last if channels_last else torch.contiguous_format
    *flows, teacher = (x.to(memory_format=layout) for x in (*flows, teacher))
    return tuple(flow.requires_grad_(True) for flow in flows), teacher


def distillation_by_definition(flows, teacher):
    """Equations 9 to 11, one flow after the other, pixels picked by their index."""
    total = 0
    for pair in (slice(0, 2), slice(2, 4)):
        final, target = flows[0][:, pair].detach(), teacher[:, pair]
        known = target.isfinite().all(1)
        w = torch.exp(-0.3 * (final - target).movedim(1, -1)[known].norm(dim=-1, keepdim=True))
        alpha, eps = w / 2, 10 ** (-(10 * w - 1) / 3)
        for level in flows[1:]:
            factor = teacher.shape[-1] // level.shape[-1]
            up = factor * F.interpolate(level[:, pair], scale_factor=factor, mode="bilinear")
            distance = ((up - target).movedim(1, -1)[known] ** 2 + eps**2) ** alpha
            total = total + distance.sum() / (2 * math.prod(known.shape))
    return total


@pytest.mark.parametrize("channels_last", [False, True])
def test_distillation_and_its_gradient_are_those_of_the_definition(channels_last):
    made, teacher = pyramid(0, channels_last)
    defined, _ = pyramid(0)
    one, other = flow_distillation(made, teacher), distillation_by_definition(defined, teacher)
    torch.testing.assert_close(one, other)
    one.backward()
    other.backward()
    assert made[0].grad is None  # it is what the others are measured by
    for a, b in zip(made[1:], defined[1:]):
        torch.testing.assert_close(a.grad, b.grad)


def test_flow_brought_to_full_size_once_serves_all_terms():
    flows, teacher = pyramid(1)
    full = tuple(full_size(flow, teacher.shape[-2:]) for flow in flows)
    assert full[0] is flows[0]
    torch.testing.assert_close(flow_distillation(full, teacher), flow_distillation(flows, teacher))
    for level, flow in zip(full, flows):
        torch.testing.assert_close(flow_error((level,), teacher), flow_error((flow,), teacher))


def test_the_error_of_flow_is_the_sum_over_levels_of_its_mean_difference():
    target = torch.full((1, 4, 16, 32), 3.0)
    levels = tuple(torch.full((1, 4, 16 // k, 32 // k), (3 + off) / k) for k, off in ((1, 0.25), (2, -0.5), (4, 1)))
    assert flow_error(levels, target).item() == pytest.approx(1.75, abs=1e-5)
    target[..., :8] = torch.nan  # a quarter of it
    assert flow_error(levels, target).item() == pytest.approx(0.75 * 1.75, abs=1e-5)


def test_an_unknown_flow_adds_nothing_and_a_broken_one_is_seen():
    flows, teacher = pyramid(2)
    (flow_distillation(flows, teacher) + flow_error(flows[:1], teacher)).backward()
    assert flows[0].grad[~teacher.isfinite()].eq(0).all()
    assert all(flow.grad.isfinite().all() for flow in flows)
    with torch.no_grad():
        flows[1][0, 0, 0, 0] = torch.nan
    assert flow_distillation(flows, teacher).isnan() and flow_error(flows[1:], teacher).isnan()


def test_features_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"have different shapes: \(2, 5, 12, 16\) and \(2, 5, 24, 32\)"):
        geometry(features(0), features(1, height=24, width=32))


def test_an_answer_without_the_true_frames_features_is_refused():
    model, frames = models.build("IFRNet_S"), torch.rand(2, 1, 3, 16, 16)
    with pytest.raises(ValueError, match="call the model with imgt"):
        ifrnet_loss(model(*frames, 0.5), frames[0])


def test_true_frames_and_flow_of_another_shape_are_refused_where_they_would_broadcast():
    model, (img0, img1, imgt) = models.build("IFRNet_S"), torch.rand(3, 2, 3, 16, 16)
    out = model(img0, img1, 0.5, imgt)
    with pytest.raises(ValueError, match=r"true frames of shape \(2, 1, 16, 16\); \(2, 3, 16, 16\) is needed"):
        ifrnet_loss(out, imgt[:, :1])
    with pytest.raises(ValueError, match=r"teacher flow of shape \(1, 4, 16, 16\); \(2, 4, 16, 16\) is needed"):
        ifrnet_loss(out, imgt, torch.zeros(1, 4, 16, 16))
