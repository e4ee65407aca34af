"""The census terms: their definition written down once more, what they keep, and what they make on the way."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from losses.terms import census, geometry


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


def test_the_gradient_is_that_of_the_definition():
    made, defined = ([z.requires_grad_(True) for z in (features(0), features(1))] for _ in range(2))
    geometry(*made).backward()
    by_definition(*defined, 3).backward()
    for a, b in zip(made, defined):
        torch.testing.assert_close(a.grad, b.grad)


def test_only_what_takes_a_gradient_gets_one():
    x, y = features(0).requires_grad_(True), features(1).requires_grad_(True)
    census(x, y).backward()
    assert x.grad is not None and y.grad is None  # the true frame is nobody's to change
    assert not geometry(features(0), features(1)).requires_grad
    with torch.no_grad():
        assert not geometry(x, y).requires_grad


def test_the_graph_is_freed_with_its_first_use_unless_it_is_kept():
    """A step's terms outlive it, until the next has its own; what its backward pass needed must not."""
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
