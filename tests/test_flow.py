import numpy as np
import pytest
import torch
from conftest import SHARED

from models import flow
from models.flow.dis import DIS
from models.flow.liteflownet import LEVELS, LiteFlowNet, correlation, halvings, sample
from models.flow.raft import RAFT

CONVENTIONS = {"acT": True, "acF": False}
TORCHVISION = {"raft_large": "raft_large", "raft_small": "raft_small"}


@pytest.fixture(scope="module")
def published():
    """Values of the published port of LiteFlowNet, with weights made by formula."""
    path = SHARED / "reference" / "liteflownet_golden.npz"
    if not path.is_file():
        pytest.skip("the reference values are not here")
    return dict(np.load(path))


def formula_liteflownet(**options) -> LiteFlowNet:
    """LiteFlowNet with weights made by formula, of the size of trained ones: the reference values' own recipe."""
    network = LiteFlowNet(**options)
    rng = np.random.default_rng(0)
    state = network.state_dict()
    for key in sorted(state):
        shape = tuple(state[key].shape)
        z = rng.standard_normal(shape)
        scale = np.sqrt(2 / np.prod(shape[1:]))
        if key.endswith(".bias"):
            value = 0.02 * z
        elif "netUp" in key:
            b = np.array([0.25, 0.75, 0.75, 0.25])
            value = np.outer(b, b) + 0.05 * z
        elif "netScale" in key:
            value = 1 + 0.1 * z
        elif key == "netFeatures.netOne.0.weight":
            value = 4 * scale * z
        elif "netMatching" in key and "netMain.0." in key:
            value = 2 * scale * z
        elif "netMain.6." in key and "netRegularization" not in key:
            value = 0.2 * scale * z
        elif "netDist" in key:
            value = 1.5 * scale * z
        else:
            value = scale * z
        state[key] = torch.from_numpy(value.astype(np.float32))
    network.load_state_dict(state)
    return network


def far(tensor, expected):
    """Largest absolute deviation."""
    return np.abs(tensor.detach().numpy() - expected).max()


def test_liteflownet_has_the_published_tensors(published):
    state = formula_liteflownet().state_dict()
    assert sorted(state) == published["w_keys"].tolist()
    assert sum(v.numel() for v in state.values()) == 5_381_969
    for i, key in enumerate(published["w_keys"].tolist()):
        values = state[key].double()
        assert values.flatten()[0].item() == pytest.approx(published["w_first"][i], abs=1e-7), key
        assert values.sum().item() == pytest.approx(published["w_sum"][i], abs=1e-5), key
        assert values.abs().sum().item() == pytest.approx(published["w_abs"][i], rel=1e-6), key


@pytest.mark.parametrize("stride", [1, 2])
def test_correlation_is_the_published_one(published, stride):
    one, two = (torch.from_numpy(published[f"corr_{name}"]) for name in ("one", "two"))
    assert far(correlation(one, two, stride), published[f"corr_s{stride}"]) < 1e-5


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_sampling_is_the_published_one_in_both_conventions(published, convention):
    x, displacement = (torch.from_numpy(published[f"warp_{name}"]) for name in ("input", "flow"))
    assert far(sample(x, displacement, CONVENTIONS[convention]), published[f"warp_{convention}"]) < 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("convention", CONVENTIONS)
@torch.inference_mode()
def test_every_part_of_liteflownet_alone_is_the_published_one(published, convention, level):
    network, rng, i = formula_liteflownet(align_corners=CONVENTIONS[convention]), np.random.default_rng(100 + level), level - 2
    shapes = 2 * [((1, LEVELS[level].channels, 12, 16), 1)] + [((1, 2, 6, 8), 0.1), ((1, 2, 12, 16), 0.1)]
    shapes += 2 * [((1, 3, 12, 16), 0.3)]
    draws = [torch.from_numpy((rng.standard_normal(shape) * by).astype(np.float32)) for shape, by in shapes]
    feature0, feature1, coarse, moved, img0, img1 = draws
    distances = []
    network.netRegularization[i].netDist.register_forward_hook(lambda module, given, result: distances.append(result))
    assert far(network.netMatching[i](feature0, feature1, coarse if level < 6 else None), published[f"unit_l{level}_m_{convention}"]) < 1e-5
    assert far(network.netSubpixel[i](feature0, feature1, moved), published[f"unit_l{level}_s_{convention}"]) < 1e-5
    assert far(network.netRegularization[i](img0, img1, feature0, moved), published[f"unit_l{level}_r_{convention}"]) < 1e-5
    if f"unit_l{level}_dist_{convention}" in published:
        assert far(distances[0], published[f"unit_l{level}_dist_{convention}"]) < 1e-4


@pytest.mark.parametrize("convention", CONVENTIONS)
@torch.inference_mode()
def test_every_stage_of_liteflownet_is_the_published_one(published, convention):
    network = formula_liteflownet(align_corners=CONVENTIONS[convention], rgb=True)
    stages = {}

    def keep(name):
        return lambda module, given, result: stages.__setitem__(name, result)

    for letter, parts in (("m", network.netMatching), ("s", network.netSubpixel), ("r", network.netRegularization)):
        for level, part in zip(LEVELS, parts):
            part.register_forward_hook(keep(f"a_stage_{letter}{level}_{convention}"))
    network.netFeatures.register_forward_hook(keep("features"))
    img0, img1 = (torch.from_numpy(published[f"a_{name}"])[None] for name in ("one", "two"))
    assert far(network.estimate(img0, img1)[0], published[f"a_flow_{convention}"]) < 1e-4
    assert far(network(img0, img1)[0], published[f"a_net_{convention}"]) < 1e-4
    features = stages.pop("features")
    assert len(stages) == 15
    for name, value in stages.items():
        assert far(value[0], published[name]) < 1e-4, name
    for name in (name for name in published if name.startswith("a_feat")):
        frame, level = int(name[6]), int(name[-1])
        assert far(features[level][frame - 1], published[name]) < 1e-4, name
    for level, image in list(halvings(img0 - network.means[0]).items())[1:]:
        assert far(image[0], published[f"a_img1_l{level}"]) < 1e-5


@pytest.mark.parametrize("convention", CONVENTIONS)
@torch.inference_mode()
def test_liteflownet_takes_sizes_that_are_no_multiple_of_its_divisor(published, convention):
    network = formula_liteflownet(align_corners=CONVENTIONS[convention], rgb=True)
    img0, img1 = (torch.from_numpy(published[f"b_{name}"])[None] for name in ("one", "two"))
    assert far(network.estimate(img0, img1)[0], published[f"b_flow_{convention}"]) < 1e-3
    small = network.estimate(img0[..., :5, :33], img1[..., :5, :33])
    assert small.shape == (1, 2, 5, 33) and small.isfinite().all()
