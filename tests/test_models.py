import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import formula_image, formula_weights

import models
from losses import ifrnet_loss

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
            expected = golden.get(f"{name}/{height}x{width}/t{t}/scale{scale}/pred")
            if expected is None:
                continue
            with torch.no_grad():
                out = model(img0, img1, t, scale=scale)
            assert np.abs(out.imgt[0].numpy() - expected).max() < 1e-4
        out = model(img0, img1, t, imgt)
        terms = ifrnet_loss(out, imgt, torch.from_numpy(flow))
        got = [terms[key].item() for key in ("rec", "geo", "dis")]
        np.testing.assert_allclose(got, golden[f"{name}/{height}x{width}/t{t}/losses"], rtol=1e-5)


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
