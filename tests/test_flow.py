"""The teachers: LiteFlowNet against the published port's values, RAFT and DIS against torchvision and OpenCV.

No trained weights are needed: what a network computes is checked with weights made by formula or at random.
"""

import hashlib
import os
import subprocess
import sys
from http.client import IncompleteRead
from io import BytesIO
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, formula_image, reference
from torchvision.models import optical_flow

from models import flow
from models.flow import raft
from models.flow.dis import DIS
from models.flow.liteflownet import LEVELS, LiteFlowNet, correlation, halvings, sample
from models.flow.raft import RAFT, margins

CONVENTIONS = {"acT": True, "acF": False}


@pytest.fixture(scope="module")
def published():
    """Values of the published port of LiteFlowNet, with weights made by formula."""
    return reference("liteflownet_golden.npz")


def formula_liteflownet(**options) -> LiteFlowNet:
    """LiteFlowNet with weights made by formula, as large as trained ones: those of the reference values."""
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
    network = formula_liteflownet(align_corners=CONVENTIONS[convention])
    rng, i = np.random.default_rng(100 + level), level - 2
    shapes = 2 * [((1, LEVELS[level].channels, 12, 16), 1)] + [((1, 2, 6, 8), 0.1), ((1, 2, 12, 16), 0.1)]
    shapes += 2 * [((1, 3, 12, 16), 0.3)]
    draws = [torch.from_numpy((rng.standard_normal(shape) * by).astype(np.float32)) for shape, by in shapes]
    feature0, feature1, coarse, moved, img0, img1 = draws
    distances = []
    network.netRegularization[i].netDist.register_forward_hook(lambda module, given, result: distances.append(result))
    results = {
        "m": network.netMatching[i](feature0, feature1, coarse if level < 6 else None),
        "s": network.netSubpixel[i](feature0, feature1, moved),
        "r": network.netRegularization[i](img0, img1, feature0, moved),
    }
    for letter, result in results.items():
        assert far(result, published[f"unit_l{level}_{letter}_{convention}"]) < 1e-5, letter
    if level in (2, 6):
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


def frames(count, height=64, width=96):
    return torch.stack([formula_image(height, width, seed) for seed in range(count)])


@torch.inference_mode()
def test_liteflownet_turns_our_rgb_into_the_bgr_that_its_weights_know():
    bgr, rgb = formula_liteflownet(), formula_liteflownet(rgb=True)
    img0, img1 = frames(2)[:, None]
    assert torch.equal(bgr.estimate(img0, img1), rgb.estimate(img0.flip(1), img1.flip(1)))
    assert not torch.equal(bgr.estimate(img0, img1), rgb.estimate(img0, img1))


def test_liteflownet_loads_a_file_under_its_published_names(tmp_path):
    network = formula_liteflownet()
    state = {key.replace("net", "module"): value for key, value in network.state_dict().items()}
    assert "moduleMatching.0.moduleMain.6.weight" in state
    torch.save(state, tmp_path / "network-default.pytorch")
    teacher = flow.build("liteflownet", tmp_path / "network-default.pytorch")
    img0, img1 = frames(2)[:, None]
    with torch.inference_mode():
        assert torch.equal(teacher.estimate(img0, img1), network.estimate(img0, img1))
    del state["moduleMatching.0.moduleMain.6.weight"]
    torch.save(state, tmp_path / "short.pytorch")
    with pytest.raises(ValueError, match="short.pytorch: not the weights of LiteFlowNet"):
        flow.build("liteflownet", tmp_path / "short.pytorch")


@torch.inference_mode()
def test_raft_is_torchvisions_on_the_frames_that_torchvision_asks_for(raft_weights):
    network = optical_flow.raft_small().eval()
    network.load_state_dict(torch.load(raft_weights, weights_only=True))
    img0, img1 = frames(2, 128, 136)[:, None]
    expected = network(2 * img0 - 1, 2 * img1 - 1, num_flow_updates=12)[-1]
    torch.testing.assert_close(RAFT("small", raft_weights).estimate(img0, img1), expected)


@torch.inference_mode()
def test_raft_takes_any_size_and_flow_stays_where_its_pixel_is(raft_weights):
    teacher = RAFT("small", raft_weights)
    img0, img1 = frames(2, 75, 133)[:, None]
    got = teacher.estimate(img0, img1)
    padded = [
        torch.from_numpy(cv2.copyMakeBorder(x[0].movedim(0, -1).numpy(), 26, 27, 1, 2, cv2.BORDER_REPLICATE))
        for x in (img0, img1)
    ]
    expected = teacher.estimate(*(x.movedim(-1, 0)[None] for x in padded))[..., 26:101, 1:134]
    assert got.shape == (1, 2, 75, 133)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("side", [1, 8, 127, 128, 129, 136, 436])
def test_raft_is_padded_to_the_next_size_that_it_takes(side):
    total = side + sum(margins(side))
    assert total % 8 == 0 and total >= 128 and total - side < 8 + max(128 - side, 0)


def test_dis_is_opencvs_on_grey_pictures():
    opencv = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    opencv.setUseSpatialPropagation(True)
    first, second = frames(3)[:2], frames(3)[1:]
    got = DIS().estimate(first, second)
    assert got.dtype == torch.float32 and got.shape == (2, 2, 64, 96)
    for one, two, found in zip(first, second, got):
        pictures = ((255 * x.movedim(0, -1).numpy()).round().astype(np.uint8) for x in (one, two))
        expected = opencv.calc(*(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures), None)
        np.testing.assert_array_equal(found.movedim(0, -1).numpy(), expected)


def test_dis_rounds_to_grey_levels_and_does_not_wrap_what_a_filter_overshot():
    first, second = (255 * frames(2)).round()
    first[:, :9], second[:, -9:] = 255, 0
    exact = DIS().estimate(first[None] / 255, second[None] / 255)
    nearly = (first + 0.45) / 255, (second - 0.45) / 255
    torch.testing.assert_close(DIS().estimate(*(x[None] for x in nearly)), exact, rtol=0, atol=0)
    beyond = torch.where(first == 255, 1.02, first / 255), torch.where(second == 0, -0.02, second / 255)
    torch.testing.assert_close(DIS().estimate(*(x[None] for x in beyond)), exact, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(2, 2), (1, 50), (16, 300), (300, 16), (31, 33)])
def test_dis_takes_frames_that_opencv_would_crash_on(size):
    img0, img1 = frames(2, *size)[:, None]
    got = DIS().estimate(img0, img1)
    assert got.shape == (1, 2, *size) and got.isfinite().all()


def test_flow_points_from_the_first_frame_to_where_it_went():
    scene = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    scene = torch.from_numpy(cv2.resize(scene, (160, 120), interpolation=cv2.INTER_CUBIC)).movedim(-1, 0)[None] / 255
    img0, img1 = scene[..., 20:84, 20:116], scene[..., 22:86, 17:113]  # the camera goes 3 to the left, 2 down
    got = DIS().estimate(img0, img1)[0, :, 8:-8, 8:-8]
    assert (got[0].median() - 3).abs() < 0.1 and (got[1].median() + 2).abs() < 0.1


class Constant:
    """A teacher whose flow is the brightness of the first frame and of the second."""

    def estimate(self, img0, img1):
        return torch.stack([img0[:, 0], img1[:, 0]], 1)


def test_labels_are_the_flow_from_the_middle_frame_to_both_ends_and_serve_in_a_loss():
    img0, imgt, img1 = (torch.full((2, 3, 4, 5), value) for value in (0.25, 0.5, 0.75))
    got = flow.labels(Constant(), img0, imgt, img1)
    assert got.shape == (2, 4, 4, 5)
    assert got[:, :, 0, 0].tolist() == 2 * [[0.5, 0.25, 0.5, 0.75]]
    prediction = torch.zeros_like(got, requires_grad=True)
    ((prediction - got) ** 2).sum().backward()
    assert prediction.grad.isfinite().all()


@torch.inference_mode()
def test_a_pair_has_the_same_flow_alone_and_in_a_batch(raft_weights):
    first, second = frames(4)[:3], frames(4)[1:]
    for teacher in (formula_liteflownet(), RAFT("small", raft_weights), DIS()):
        together = teacher.estimate(first, second)
        alone = torch.cat([teacher.estimate(x[None], y[None]) for x, y in zip(first, second)])
        torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_flow_by_dis_does_not_depend_on_smaller_frames_before():
    img0, img1 = frames(2)[:, None]
    dis = DIS()
    for size in (40, 20):
        small = [x[..., :size, :size] for x in (img0, img1)]
        assert torch.equal(dis.estimate(*small), DIS().estimate(*small))
    assert torch.equal(dis.estimate(img0, img1), DIS().estimate(img0, img1))


def test_teachers_keep_nothing_for_a_backward_pass(raft_weights):
    img0, img1 = frames(2)[:, None]
    for teacher in (formula_liteflownet(), RAFT("small", raft_weights), DIS()):
        assert not teacher.estimate(img0, img1).requires_grad


def test_teachers_refuse_what_would_be_wrong_flow_without_a_word(raft_weights):
    pair = frames(2)[:, None].repeat(1, 2, 1, 1, 1)
    for teacher in (formula_liteflownet(), RAFT("small", raft_weights), DIS()):
        with pytest.raises(ValueError, match="frames of torch.uint8 and torch.uint8; floats"):
            teacher.estimate(*(255 * pair).byte())
        for img0, img1 in ((pair[0], pair[1, :1]), (pair[0], pair[1, ..., 1:]), pair[:, 0], pair[:, :, :1]):
            with pytest.raises(ValueError, match=r"both must have the same, \(B, 3, H, W\)"):
                teacher.estimate(img0, img1)


def test_teachers_are_asked_for_by_name(tmp_path, raft_weights, monkeypatch):
    assert isinstance(flow.build("raft_small", raft_weights), RAFT)
    monkeypatch.setattr(flow, "LITEFLOWNET", tmp_path / "network-default.pytorch")
    wrong = [
        (("no_flow",), ValueError, f"unknown teacher 'no_flow'; choose one of {', '.join(flow.TEACHERS)}"),
        (("dis", raft_weights), ValueError, "small.pth: dis has no weights"),
        (("liteflownet",), FileNotFoundError, "--weights FILE"),
        (("raft_small", tmp_path / "gone.pth"), FileNotFoundError, "gone.pth: no such checkpoint"),
        (("raft_large", raft_weights), ValueError, "small.pth: not the weights of torchvision's raft_large"),
    ]
    for arguments, kind, message in wrong:
        with pytest.raises(kind, match=message):
            flow.build(*arguments)
    with pytest.raises(ValueError, match="rgb: for liteflownet alone, not for dis"):
        flow.build("dis", rgb=True)


def test_a_pickle_that_would_run_code_is_not_loaded_as_weights(tmp_path, published_raft):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"moduleFeatures": Trap()}, tmp_path / "trap.pytorch")
    with pytest.raises(ValueError, match="trap.pytorch: not an intact checkpoint of tensors only"):
        flow.build("liteflownet", tmp_path / "trap.pytorch")
    buffer = BytesIO()
    torch.save({"moduleFeatures": Trap()}, buffer)
    _, path = published_raft(buffer.getvalue())
    with pytest.raises(ValueError, match="raft-.*: not an intact checkpoint of tensors only"):
        flow.build("raft_small")
    assert path.is_file() and not (tmp_path / "sprung").exists()


def test_a_failed_download_is_one_line_that_names_the_way_out(tmp_path, monkeypatch):
    from urllib import request
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(request, "urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(OSError, match="raft_small.*could not be fetched .no route to host.*--weights FILE"):
        flow.build("raft_small")


def test_a_folder_for_downloads_that_cannot_be_made_is_one_line_that_names_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="raft_small.*could not be fetched .*/file/hub.*--weights FILE"):
        flow.build("raft_small")


@pytest.fixture
def published_raft(tmp_path, monkeypatch, raft_weights):
    """A function that publishes bytes in place of torchvision's weights, under a name with their checksum, and returns
    where they are downloaded from and where to."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def publish(content):
        source = tmp_path / f"raft-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        source.write_bytes(content)
        monkeypatch.setitem(raft.SIZES, "small", (optical_flow.raft_small, SimpleNamespace(url=source.as_uri())))
        return source, tmp_path / "hub/checkpoints" / source.name

    return publish


def test_published_weights_are_fetched_once(published_raft, raft_weights):
    source, _ = published_raft(raft_weights.read_bytes())
    state = RAFT("small", raft_weights).state_dict()
    for _ in range(2):
        assert all(torch.equal(value, state[key]) for key, value in RAFT("small").state_dict().items())
        source.unlink(missing_ok=True)


def test_a_download_that_is_not_what_was_published_is_named(published_raft, raft_weights, monkeypatch):
    source, path = published_raft(raft_weights.read_bytes())
    for content in (b"<html>log in here</html>", b"", source.read_bytes()[:-1]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(ValueError, match="pth: not RAFT's weights as published; remove it, or give --weights FILE"):
            flow.build("raft_small")
        path.unlink()
        source.write_bytes(content)
        with pytest.raises(OSError, match="could not be fetched .invalid hash value.*--weights FILE"):
            flow.build("raft_small")
        assert not list(path.parent.iterdir())

    def broken(*args, **kwargs):
        raise IncompleteRead(b"")

    monkeypatch.setattr("torch.hub.urlopen", broken)
    with pytest.raises(OSError, match="could not be fetched .IncompleteRead.*--weights FILE"):
        flow.build("raft_small")


def test_the_best_teacher_whose_weights_are_here_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(flow, "LITEFLOWNET", tmp_path / "network-default.pytorch")
    assert flow.choose() == "dis"
    for size, weights in (("small", "Raft_Small_Weights"), ("large", "Raft_Large_Weights")):
        path = tmp_path / "torch/hub/checkpoints" / getattr(optical_flow, weights).DEFAULT.url.split("/")[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert flow.choose() == f"raft_{size}"
    flow.LITEFLOWNET.touch()
    assert flow.choose() == "liteflownet"


def test_a_teacher_that_was_added_is_used_where_it_is_named_and_not_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(flow, "LITEFLOWNET", tmp_path / "network-default.pytorch")
    added = object()
    monkeypatch.setattr(flow, "TEACHERS", {"mine": lambda weights, device: added, **flow.TEACHERS})
    assert flow.build("mine") is added and flow.choose() == "dis"


def test_without_torchvision_a_teacher_that_does_not_need_it_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "LITEFLOWNET", tmp_path / "network-default.pytorch")
    monkeypatch.delitem(sys.modules, "models.flow.raft")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)  # importing it is an ImportError
    assert flow.choose() == "dis"


def test_opencv_and_torchvision_are_imported_only_with_the_teacher_that_needs_them():
    check = "import sys, models.flow; sys.exit(bool({'cv2', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@torch.inference_mode()
def test_teachers_say_the_same_on_a_gpu(raft_weights, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    img0, img1 = frames(2)[:, None]
    for make in (formula_liteflownet, lambda: RAFT("small", raft_weights)):
        on_cpu = make().estimate(img0, img1)
        on_gpu = make().cuda().estimate(img0, img1)
        assert on_gpu.device == img0.device
        torch.testing.assert_close(on_gpu, on_cpu, atol=1e-3, rtol=0)
