import re
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import formula_image, formula_weights

import models
from losses import ifrnet_loss
from models import fast
from models.layers import conv, warp

PARAMETERS = {"IFRNet_S": 2_803_610, "IFRNet": 4_959_692, "IFRNet_L": 19_699_460}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_papers(name):
    assert sum(p.numel() for p in models.build(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("size", [(64, 96, 10), (128, 64, 20)])
def test_frames_and_losses_are_those_of_the_published_code(golden, name, size):
    height, width, seed = size
    model = formula_weights(models.build(name))
    assert sorted(model.state_dict()) == sorted(golden[f"{name}/keys"].tolist())
    img0, img1, imgt = (formula_image(height, width, seed + k)[None] for k in range(3))
    flow = np.random.default_rng(seed + 3).normal(0, 3, (1, 4, height, width)).astype(np.float32)
    for t in (0.5, 0.25):
        for scale in (1.0, 0.5):
            expected = golden[f"{name}/{height}x{width}/t{t}/scale{scale}/pred"]
            with torch.no_grad():
                out = model(img0, img1, t, scale=scale)
            assert np.abs(out.imgt[0].numpy() - expected).max() < 2e-5
        out = model(img0, img1, t, imgt)
        terms = ifrnet_loss(out, imgt, torch.from_numpy(flow))
        got = [terms[key].item() for key in ("rec", "geo", "dis")]
        np.testing.assert_allclose(got, golden[f"{name}/{height}x{width}/t{t}/losses"], rtol=1e-5)


# Some of the reference values, for where the rest are not at hand: 64x96, seed 10, t = 0.25; red of the first pixel,
# green of the middle one and blue of the last, at scale 1 and 0.5; rec, geo, dis.
SOME = {
    "IFRNet_S": ((0.494398, 0.466843, 0.476506), (0.515873, 0.298599, 0.478145), (0.3965657, 0.003592599, 0.06907697)),
    "IFRNet": ((0.475549, 0.461458, 0.58385), (0.490303, 0.527654, 0.571897), (0.4016036, 0.004788117, 0.06904872)),
    "IFRNet_L": ((0.458602, 0.604692, 0.669808), (0.485915, 0.47616, 0.668329), (0.4140487, 0.005861606, 0.06913188)),
}  # fmt: skip


@pytest.mark.parametrize("name", SOME)
def test_some_values_of_the_published_code_are_met_anywhere(name):
    model = formula_weights(models.build(name))
    img0, img1, imgt = (formula_image(64, 96, 10 + k)[None] for k in range(3))
    flow = torch.from_numpy(np.random.default_rng(13).normal(0, 3, (1, 4, 64, 96)).astype(np.float32))
    *pixels, losses = SOME[name]
    with torch.no_grad():
        for scale, expected in zip((1.0, 0.5), pixels):
            frame = model(img0, img1, 0.25, scale=scale).imgt[0]
            got = [frame[0, 0, 0], frame[1, 31, 47], frame[2, 63, 95]]
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
        terms = ifrnet_loss(model(img0, img1, 0.25, imgt), imgt, flow)
    np.testing.assert_allclose([terms[key].item() for key in ("rec", "geo", "dis")], losses, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_at_another_scale_the_truth_is_seen_at_that_scale(scale):
    model, imgt = formula_weights(models.build("IFRNet_S")), formula_image(64, 96, 3)[None]
    pair = [formula_image(64, 96, seed)[None] for seed in (1, 2)]
    with torch.no_grad():
        out = model(*pair, 0.5, imgt=imgt, scale=scale)
        mean = torch.cat(pair).mean()
        expected = model.encoder(F.interpolate(imgt - mean, scale_factor=scale, mode="bilinear"))
    for feature, target, own in zip(out.features, out.targets, expected, strict=False):
        assert feature.shape == target.shape
        torch.testing.assert_close(target, own, atol=1e-4, rtol=1e-4)


def test_times_and_true_frames_that_do_not_fit_the_pairs_are_refused():
    model, pairs = models.build("IFRNet_S"), torch.rand(2, 2, 3, 16, 16)
    for times in ([], [0.2, 0.5, 0.7]):
        with pytest.raises(ValueError, match=f"{len(times)} times for 2 pairs: give one, or the same number"):
            model(*pairs, torch.tensor(times))
    with pytest.raises(ValueError, match=r"different sizes: \(2, 3, 16, 16\) and \(2, 3, 16, 32\)"):
        model(pairs[0], torch.rand(2, 3, 16, 32), 0.5)
    for count in (1, 4):
        with pytest.raises(ValueError, match=rf"true frames of shape \({count}, 3, 16, 16\) for \(2, 3, 16, 16\)"):
            model(*pairs, 0.5, torch.rand(count, 3, 16, 16))


@pytest.mark.parametrize("shape", [(3, 32, 48), (1, 1, 32, 48), (1, 4, 32, 48), (0, 3, 32, 48), (32, 48)])
def test_what_is_no_batch_of_rgb_is_refused_before_its_memory_is_read(shape):
    model, frame = models.build("IFRNet_S"), torch.zeros(shape)
    message = re.escape(f"frames of shape {shape}; RGB is needed, (B, 3, H, W)")
    for network in (model, fast.FastIFRNet(model, torch.device("cpu"), torch.float32)):
        with pytest.raises(ValueError, match=message):
            network.encode(frame, frame)


def test_a_scale_that_is_a_fraction_is_told_as_a_number():
    frame = torch.zeros(1, 3, 32, 48)
    with pytest.raises(ValueError, match="48x32 at scale 0.333333: width and height times scale must be multiples"):
        models.build("IFRNet_S").encode(frame, frame, Fraction(1, 3))


def test_a_network_without_shipped_weights_is_named_beside_those_that_have_some(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "CHECKPOINTS", tmp_path)
    (tmp_path / "IFRNet_S.pth").touch()
    with pytest.raises(
        FileNotFoundError, match="^IFRNet_L: no shipped weights for this network; give a path, or IFRNet_S$"
    ):
        models.load("IFRNet_L")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flow_and_coordinates_are_single_precision_where_convolutions_are_half(dtype):
    """In half precision stripes of a pixel would blur into grey at this width, and flow would move in steps."""
    stripes = (torch.arange(4096) % 2).to(dtype).expand(1, 1, 4, -1)
    right = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4096)
    moved = warp(stripes, right)[..., :-1]
    assert moved.dtype == dtype
    torch.testing.assert_close(moved, stripes[..., 1:], rtol=0, atol=0.01)
    model, pair = formula_weights(models.build("IFRNet_S")), [formula_image(32, 48, seed)[None] for seed in (1, 2)]
    with torch.no_grad(), torch.autocast("cpu", dtype):
        out = model(*pair, 0.5)
    assert {x.dtype for x in out.features[:2]} == {dtype}
    assert {flow.dtype for flow in out.flows} == {torch.float32}


@pytest.mark.parametrize("kind", ["gelu", "gelu+bn"])
def test_gelu_takes_the_place_of_every_prelu(kind):
    torch.manual_seed(0)
    layer, x = conv(3, 5, act=kind), torch.rand(2, 3, 8, 8)
    y = F.conv2d(x, layer[0].weight, layer[0].bias, padding=1)
    if kind == "gelu+bn":
        y = (y - y.mean((0, 2, 3), True)) / (y.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), y * (1 + torch.erf(y / 2**0.5)) / 2)
    there, here = (
        [name for name, module in models.build("IFRNet_S", act).named_modules() if type(module).__name__ == wanted]
        for act, wanted in (("prelu", "PReLU"), (kind, "GELU"))
    )
    assert len(here) == len(there) == 32


@pytest.mark.parametrize(
    "asked, named", [("IFRNet_0", ", ".join(models.VARIANTS)), ("no_act", ", ".join(models.ACTIVATIONS))]
)
def test_what_there_is_none_of_is_answered_with_what_there_is(asked, named):
    words = [asked] if asked.startswith("IFRNet") else ["IFRNet_S", asked]
    with pytest.raises(ValueError, match=f"^unknown .* '{asked}'; choose one of {re.escape(named)}$"):
        models.build(*words)
