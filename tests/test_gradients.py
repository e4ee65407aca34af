"""The loss's gradient against finite differences in float64, term by term and through the whole network."""

import pytest
import torch

import models
from losses import ifrnet_loss
from models import Interpolation

SIZE = 16


def inputs(seed=0, width=SIZE):
    """A prediction, its truth and a teacher, all float64, away from the kinks of the loss."""
    rng = torch.Generator().manual_seed(seed)

    def draw(channels, level=0):
        return torch.rand(1, channels, SIZE >> level, width >> level, generator=rng, dtype=torch.float64)

    flows = tuple(4 * draw(4, k) - 2 for k in range(4))
    features, targets = (tuple(draw(2, k) for k in (1, 2, 3)) for _ in range(2))
    teacher = flows[0] + draw(4) - 0.5
    teacher[..., 3, 5:7] = torch.nan  # unknown there
    return Interpolation(draw(3), flows, features, targets), draw(3), teacher


@pytest.mark.parametrize("term", ["rec", "geo", "dis"])
def test_each_term_has_the_gradient_of_its_value(term):
    out, imgt, teacher = inputs(width=8 if term == "rec" else SIZE)  # of frames alone, which take longest
    moved = {"rec": [out.imgt], "geo": [*out.features, *out.targets], "dis": list(out.flows[1:])}[term]
    for x in moved:
        x.requires_grad_(True)
    # What the loss detaches (the truth, the final flow) is not varied: finite differences would not be zero.
    assert torch.autograd.gradcheck(lambda *_: ifrnet_loss(out, imgt, teacher)[term], moved, eps=1e-6, atol=1e-7)


def test_what_is_detached_takes_no_gradient():
    out, imgt, teacher = inputs()
    for x in (imgt, out.flows[0], teacher):
        x.requires_grad_(True)
    out.imgt.requires_grad_(True)
    terms = ifrnet_loss(out, imgt, teacher)
    (terms["rec"] + terms["dis"]).backward()
    assert out.flows[0].grad is None or not out.flows[0].grad.any()


def test_the_whole_sum_through_the_network_follows_its_gradient():
    """Along a random direction of all weights, in float64."""
    torch.manual_seed(0)
    model = models.build("IFRNet_S").double()
    rng = torch.Generator().manual_seed(1)
    img0, img1, imgt = (torch.rand(1, 3, 32, 32, generator=rng, dtype=torch.float64) for _ in range(3))

    def value():
        out = model(img0, img1, 0.5, imgt)
        # No distillation: its weights follow the final flow, detached, and a difference would see them change.
        return sum(ifrnet_loss(out, imgt).values())

    value().backward()
    parameters = list(model.parameters())
    direction = [torch.randn(p.shape, generator=rng, dtype=torch.float64) * p.detach().abs().mean() for p in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, direction)).item()
    step, values = 1e-4, []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction):
                p += sign * step * d
            values.append(value().item())
    # Flow and features pass through float32 inside, which limits the precision of a difference.
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=2e-2)
