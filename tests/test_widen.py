"""A widened network answers as the narrow one did, and learns with all of its channels."""

import pytest
import torch

import models
from models.widen import widen


def trained(name, activation):
    """A network whose every number matters: fresh ones have zeros and ones."""
    model = models.build(name, activation)
    torch.manual_seed(3)
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim < 4:
            value.copy_(torch.rand_like(value) * 0.3 + (0.5 if "var" in key else 0))
    return model


@pytest.mark.parametrize("activation", models.ACTIVATIONS)
@pytest.mark.parametrize("old, new", [("IFRNet_S", "IFRNet"), ("IFRNet_S", "IFRNet_L"), ("IFRNet", "IFRNet_L")])
def test_a_widened_network_answers_as_the_narrow_one(old, new, activation):
    narrow = trained(old, activation).double().eval()
    wide = widen(narrow, new).double().eval()
    assert (wide.name, wide.act) == (new, activation)
    img0, img1 = torch.rand(2, 2, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        expected, answer = narrow(img0, img1, 0.3), wide(img0, img1, 0.3)
    assert expected.imgt.std() > 0.01
    for a, b in ((expected.imgt, answer.imgt), *zip(expected.flows, answer.flows)):
        assert (a - b).abs().max() < 1e-4 * a.abs().max()  # the shares are float32


def test_copies_of_a_channel_learn_different_things():
    wide = widen(trained("IFRNet_S", "prelu"), "IFRNet")
    img0, img1 = torch.rand(2, 1, 3, 32, 48)
    wide(img0, img1, 0.5).imgt.mean().backward()
    gradients = wide.decoder1.convblock[0][0].weight.grad.flatten(1)
    assert (torch.cdist(gradients, gradients) + torch.eye(len(gradients))).min() > 0


def test_the_same_seed_widens_alike_and_another_does_not():
    narrow = models.build("IFRNet_S")
    one, two, other = (widen(narrow, "IFRNet", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_widening_is_the_same_whatever_pytorchs_defaults(unless_told):
    narrow = models.build("IFRNet_S")
    expected = widen(narrow, "IFRNet").state_dict()
    unless_told()
    got = widen(narrow, "IFRNet").state_dict()
    assert all(got[key].dtype == torch.float32 and torch.equal(got[key], expected[key]) for key in expected)


def test_a_network_does_not_become_narrower():
    with pytest.raises(ValueError, match="unknown model 'IFRNet_0'; choose one of IFRNet_S, "):
        widen(models.build("IFRNet_S"), "IFRNet_0")
    with pytest.raises(ValueError, match="IFRNet_L cannot be widened to IFRNet_S, which is narrower"):
        widen(models.build("IFRNet_L"), "IFRNet_S")


@pytest.mark.parametrize("layer", ["stem", "side", "widths"])
def test_a_network_that_is_narrower_in_one_layer_alone_is_refused(monkeypatch, layer):
    large = models.VARIANTS["IFRNet_L"]
    narrow = (*large.widths[:3], 48) if layer == "widths" else models.VARIANTS["IFRNet_S"]._asdict()[layer] - 1
    monkeypatch.setitem(models.VARIANTS, "odd", large._replace(**{layer: narrow}))
    with pytest.raises(ValueError, match="IFRNet_S cannot be widened to odd, which is narrower"):
        widen(models.build("IFRNet_S"), "odd")
