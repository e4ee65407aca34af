"""Scores against the published implementation's values, scikit-image's, and closed forms."""

import math

import numpy as np
import pytest
import torch
import torchvision
from conftest import formula_image
from skimage.metrics import structural_similarity

from utils import metrics
from utils.lpips import BACKBONES, LPIPS


def noisy_pair(height, width, seed):
    """The reference values' recipe: a picture with noise, and the picture."""
    target = formula_image(height, width, seed)
    noise = np.random.default_rng(seed + 9).normal(0, 0.03, target.shape).astype(np.float32)
    return (target + torch.from_numpy(noise)).clamp(0, 1)[None], target[None]


@pytest.mark.parametrize("size", [(64, 96, 10), (128, 64, 20)])
def test_scores_are_those_of_the_published_code(golden, size):
    pair = noisy_pair(*size)
    got = [metric(*pair).item() for metric in (metrics.psnr, metrics.ssim, metrics.ie)]
    np.testing.assert_allclose(got, golden[f"metrics/{size[0]}x{size[1]}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96, 1), (11, 40, 2), (97, 31, 3)])
def test_2d_ssim_is_scikit_images(size):
    prediction, target = noisy_pair(*size)
    expected = structural_similarity(
        prediction[0].numpy(),
        target[0].numpy(),
        channel_axis=0,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert metrics.ssim_2d(prediction, target).item() == pytest.approx(expected, abs=1e-4)


def test_3d_ssim_is_a_full_convolution_with_the_cubic_window():
    prediction, target = noisy_pair(20, 24, 4)
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.einsum("i,j,k->ijk", line, line, line) / line.sum() ** 3

    def blur(x):
        padded = np.pad(x, 5, mode="edge")
        views = np.lib.stride_tricks.sliding_window_view(padded, window.shape)
        return np.einsum("chwijk,ijk->chw", views, window)

    x, y = (v[0].double().numpy() for v in (prediction, target))
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    expected = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert metrics.ssim(prediction, target).item() == pytest.approx(expected.mean(), abs=1e-9)


def test_closed_forms():
    target = torch.full((1, 3, 16, 16), 0.5)
    assert metrics.psnr(target + 0.1, target).item() == pytest.approx(20, abs=1e-5)
    assert metrics.psnr(target, target).item() == math.inf
    assert metrics.ie(target + 10.4 / 255, target).item() == 10  # both are rounded first
    assert metrics.ssim(target, target).item() == metrics.ssim_2d(target, target).item() == 1
    # Without structure only luminance is left: (2ab + c) / (a^2 + b^2 + c).
    expected = (2 * 0.5 * 0.3 + 1e-4) / (0.25 + 0.09 + 1e-4)
    assert metrics.ssim(target - 0.2, target).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim, metrics.ssim_2d, metrics.ie])
def test_a_batch_scores_exactly_as_its_images_one_by_one(metric):
    pairs = [noisy_pair(32, 48, seed) for seed in range(3)]
    together = metric(*(torch.cat(side) for side in zip(*pairs)))
    assert together.shape == (3,)
    assert together.tolist() == [metric(*pair).item() for pair in pairs]


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim, metrics.ssim_2d, metrics.ie])
def test_what_would_be_scored_wrongly_is_refused(metric):
    prediction, target = noisy_pair(32, 48, 1)
    for wrong, complaint in (
        ((prediction, (255 * target).byte()), "uint8; floats"),  # differences of bytes would wrap round
        ((prediction.numpy(), target), "type ndarray; tensors"),
        ((prediction[:, :1], target), r"\(1, 1, 32, 48\) and \(1, 3, 32, 48\)"),
        ((prediction[0], target[0]), r"\(3, 32, 48\) and"),
        ((prediction.movedim(1, -1), target.movedim(1, -1)), r"\(1, 32, 48, 3\) and"),
    ):
        with pytest.raises(ValueError, match=complaint):
            metric(*wrong)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim, metrics.ssim_2d, metrics.ie])
def test_scores_are_the_same_whatever_pytorch_takes_unless_told(metric, unless_told):
    pair = noisy_pair(32, 48, 1)
    expected = metric(*pair)
    unless_told()
    assert torch.equal(metric(*pair), expected)


def test_2d_ssim_names_the_size_of_an_image_smaller_than_its_window():
    with pytest.raises(ValueError, match="40x10"):
        metrics.ssim_2d(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


def moving(n, step):
    """A video of a scene that moves to the left by `step` pixels a frame, and its flow there and back."""
    scene = formula_image(40, 64 + n * step, 6)
    video = torch.stack([scene[..., k * step : k * step + 64] for k in range(n)])
    forward = torch.zeros(n - 1, 2, 40, 64)
    forward[:, 0] = -step
    return video, forward, -forward


def test_a_video_that_only_moves_does_not_flicker_and_one_that_blinks_does():
    video, forward, backward = moving(4, 3)
    assert metrics.warping_error(video, forward, backward).item() == pytest.approx(0, abs=1e-10)
    blinking = video + 0.1 * torch.tensor([0, 1, 0, 1]).view(4, 1, 1, 1)
    assert metrics.warping_error(blinking, forward, backward).item() == pytest.approx(0.01, rel=1e-4)


def test_the_flicker_of_bytes_whose_differences_would_wrap_round_is_refused():
    video, *flow = moving(3, 2)
    with pytest.raises(ValueError, match="uint8; floats"):
        metrics.warping_error((255 * video).byte(), *flow)


def test_what_is_hidden_in_the_next_frame_does_not_count_as_flicker():
    video, forward, backward = moving(3, 2)
    video[1, :, 10:20, 30:40] = 1 - video[1, :, 10:20, 30:40]
    assert metrics.warping_error(video, forward, backward) > 1e-3
    backward[0, :, 10:20, 30:40] += 9  # the way back leads elsewhere: something else is seen there
    forward[1, :, 10:20, 30:40] += 9
    assert metrics.warping_error(video, forward, backward).item() == pytest.approx(0, abs=1e-6)


def test_a_video_in_which_nothing_is_seen_twice_has_no_flicker_to_measure():
    video, forward, backward = moving(3, 2)
    far = torch.full_like(forward, 1000)
    assert metrics.warping_error(video, far, -far).item() == 0
    near = torch.stack([forward[0], far[1]]), torch.stack([backward[0], -far[1]])
    assert metrics.warping_error(video, *near).isfinite()


# LPIPS, with random weights


@pytest.fixture(scope="module")
def lpips_weights():
    """torchvision's AlexNet features and five linear layers, under the names of the published files."""
    torch.manual_seed(0)
    backbone = torchvision.models.alexnet(weights=None).eval()
    lines = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 192, 384, 256, 256))}
    return backbone, lines


def test_lpips_is_the_weighted_distance_of_unit_features(lpips_weights, tmp_path):
    backbone, lines = lpips_weights
    torch.save(backbone.state_dict(), tmp_path / "alexnet.pth")
    torch.save(lines, tmp_path / "alex.pth")
    pair = noisy_pair(80, 96, 7)
    outputs = []
    relus = [m for m in backbone.features if isinstance(m, torch.nn.ReLU)]
    hooks = [relu.register_forward_hook(lambda module, x, y: outputs.append(y[0].clone())) for relu in relus]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        for image in pair:
            backbone.features((image - mean) / std)  # the published shift and scale are these, rounded
    expected = 0
    for k in range(5):
        x, y = (f / (f**2).sum(0).sqrt() for f in (outputs[k], outputs[k + 5]))
        expected += (
            (lines[f"lin{k}.model.1.weight"][0] * (torch.nan_to_num(x) - torch.nan_to_num(y)) ** 2).sum(0).mean()
        )
    for hook in hooks:
        hook.remove()
    metric = LPIPS([tmp_path / "alexnet.pth", tmp_path / "alex.pth"])
    assert metric(*pair).item() == pytest.approx(expected.item(), rel=2e-3)
    assert metric(pair[1], pair[1]).tolist() == [0]
    twice = metric(torch.cat(pair), torch.cat(pair[::-1]))
    torch.testing.assert_close(twice[0], twice[1])


def test_lpips_reads_a_whole_state_of_the_lpips_package(lpips_weights, tmp_path):
    backbone, lines = lpips_weights
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    state = {}
    for index, module in enumerate(backbone.features):
        for name, value in module.state_dict().items():
            state[f"net.slice{slices[index]}.{index}.{name}"] = value
    state |= {name.replace("lin", "lins.", 1): value for name, value in lines.items()}
    torch.save(state, tmp_path / "whole.pth")
    torch.save(backbone.state_dict() | lines, tmp_path / "both.pth")
    pair = noisy_pair(80, 96, 8)
    values = [LPIPS([tmp_path / name])(*pair).item() for name in ("whole.pth", "both.pth")]
    assert values[0] == values[1] > 0


@pytest.mark.parametrize("name", BACKBONES)
def test_lpips_names_the_size_of_an_image_of_which_its_network_leaves_nothing(tmp_path, name):
    state = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate(BACKBONES[name].channels)}
    with torch.device("meta"):
        features = getattr(torchvision.models, name)(weights=None).features
    state |= {f"features.{key}": 0.05 * torch.randn(value.shape) for key, value in features.state_dict().items()}
    torch.save(state, tmp_path / "all.pth")
    metric, least = LPIPS([tmp_path / "all.pth"]), BACKBONES[name].least
    needed = features[: BACKBONES[name].taps[-1] + 1]
    assert metric(*torch.rand(2, 1, 3, least, least)).isfinite().all()
    for height, width in ((least - 1, 40), (40, least - 1)):
        with pytest.raises(ValueError, match=f"{width}x{height} is too small"):
            metric(*torch.rand(2, 1, 3, height, width))
        with pytest.raises(RuntimeError, match="too small"):
            needed(torch.empty(1, 3, height, width, device="meta"))  # so that nothing is refused without need


def test_lpips_without_its_weights_says_which_files_it_needs(lpips_weights, tmp_path):
    backbone, lines = lpips_weights
    torch.save(lines, tmp_path / "alex.pth")
    torch.save(backbone.state_dict(), tmp_path / "alexnet.pth")
    torch.save({name: 0.5 for name in lines}, tmp_path / "numbers.pth")
    torch.save([1], tmp_path / "list.pth")
    other = {name: value[:9] for name, value in backbone.state_dict().items()}
    torch.save(lines | other, tmp_path / "other.pth")
    torch.save(lines | {"lin2.model.1.weight": lines["lin2.model.1.weight"] * math.nan}, tmp_path / "nan.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "alex.pth").read_bytes()[:300])
    for paths, complaint in (
        (None, "LPIPS needs weights: --lpips_weights BACKBONE LINEAR"),
        (["gone.pth"], "gone.pth: no such checkpoint"),
        (["cut.pth"], "cut.pth: not an intact checkpoint of tensors"),
        (["alexnet.pth"], "alexnet.pth: no linear layers"),
        (["alex.pth"], r"alex.pth: lacks features.0.weight of alexnet"),
        (["numbers.pth"], "numbers.pth: no linear layers"),
        (["alexnet.pth", "nan.pth"], "nan.pth: lin2.model.1.weight holds NaN"),
        (["list.pth"], "list.pth: holds no weights by name"),
        (["other.pth"], "other.pth: the backbone is not alexnet, which the linear layers are for"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=complaint):
            LPIPS(paths and [tmp_path / path for path in paths])


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_lpips_takes_weights_of_any_precision(lpips_weights, tmp_path, kind):
    state = {
        name: value.to(kind)
        for part in (lpips_weights[0].state_dict(), lpips_weights[1])
        for name, value in part.items()
    }
    torch.save(state, tmp_path / "all.pth")
    torch.save({name: value.float() for name, value in state.items()}, tmp_path / "float.pth")
    pair = noisy_pair(80, 96, 8)
    assert LPIPS([tmp_path / "all.pth"])(*pair).item() == LPIPS([tmp_path / "float.pth"])(*pair).item() > 0


def test_lpips_refuses_what_would_be_scored_wrongly(lpips_weights, tmp_path):
    torch.save(lpips_weights[0].state_dict() | lpips_weights[1], tmp_path / "all.pth")
    metric, (prediction, target) = LPIPS([tmp_path / "all.pth"]), noisy_pair(80, 96, 8)
    for wrong, complaint in (
        ((prediction, (255 * target).byte()), "uint8; floats"),
        ((prediction, target.expand(2, -1, -1, -1)), r"\(1, 3, 80, 96\) and \(2, 3, 80, 96\)"),
        ((prediction[..., :64], target), r"\(1, 3, 80, 64\) and"),
    ):
        with pytest.raises(ValueError, match=complaint):
            metric(*wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scores_on_the_gpu_are_those_on_the_cpu():
    pair = noisy_pair(64, 96, 5)
    for metric in (metrics.psnr, metrics.ssim, metrics.ssim_2d, metrics.ie):
        assert metric(*(x.cuda() for x in pair)).item() == pytest.approx(metric(*pair).item(), abs=1e-9)
