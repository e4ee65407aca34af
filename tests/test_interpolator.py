import copy
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import formula_image, formula_weights
from processes import begin

import models
from models import baselines
from models.interpolator import CPU_BUDGET, Padding, scale_for, smallest_divisor
from models.strips import REACH, StripIFRNet
from utils import io


@pytest.fixture(scope="module")
def model():
    return formula_weights(models.build("IFRNet_S"))


@pytest.fixture(scope="module")
def pair():
    return formula_image(64, 96, 0), formula_image(64, 96, 1)


@pytest.fixture(scope="module")
def calm():
    """Weights whose flow is small, as in trained ones: with the formula's own, every rounding moves whole pixels."""
    model = formula_weights(models.build("IFRNet_S"))
    for level in range(1, 5):
        for parameter in getattr(model, f"decoder{level}").convblock[2].parameters():
            parameter.data *= 0.1
    return model


def counted_encoding(monkeypatch, model):
    """A list that grows with every call of the encoder."""
    calls, forward = [], model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda img: calls.append(len(img)) or forward(img))
    return calls


# Sizes


@pytest.mark.parametrize("height, width", [(2, 2), (3, 2), (2, 301), (5, 7), (16, 16), (17, 31), (33, 65), (63, 97)])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.8])
def test_frames_of_any_size_come_back_in_that_size(model, height, width, scale):
    img0, img1 = formula_image(height, width, 0), formula_image(height, width, 1)
    out = models.Interpolator(model, "cpu", scale=scale)(img0, img1)
    assert out.shape == (1, 3, height, width) and out.dtype == torch.float32
    assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("height, width", [(1, 1), (1, 64), (64, 1)])
def test_a_frame_without_two_rows_and_columns_is_refused(model, height, width):
    frame = torch.zeros(3, height, width)
    with pytest.raises(ValueError, match="at least 2x2"):
        models.Interpolator(model, "cpu")(frame, frame)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((3, 64, 96), (3, 64, 80)), "different sizes: 96x64 and 80x64"),
        (((1, 64, 96), (1, 64, 96)), "frames of shape (1, 64, 96); RGB"),
        (((64, 96), (64, 96)), "frames of shape (64, 96); RGB"),
    ],
)
def test_what_is_no_pair_of_frames_is_refused(model, shapes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        models.Interpolator(model, "cpu")(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    "frames, times, message",
    [
        ((np.zeros((3, 64, 96), "f4"),) * 2, [0.5], "frames of type ndarray; tensors are needed"),
        (
            (torch.full((3, 64, 96), 200.0),) * 2,
            [0.5],
            r"frames reach 200; values in \[0, 1\] are needed: divide by 255",
        ),
        ((torch.zeros(1, 3, 64, 96), torch.zeros(2, 3, 64, 96)), [0.5], r"different shapes: \(1, 3, 64, 96\) and \(2,"),
        ((torch.zeros(3, 64, 96), torch.zeros(1, 3, 64, 96)), [0.5], r"different shapes: \(3, 64, 96\) and \(1, 3"),
        ((torch.zeros(0, 3, 64, 96),) * 2, [0.5], r"frames of shape \(0, 3, 64, 96\)"),
        ((torch.zeros(3, 64, 96),) * 2, 0.5, r"times = 0.5; a list of numbers in \(0, 1\) is needed"),
        ((torch.zeros(3, 64, 96),) * 2, [], r"times = \[\]; a list of numbers"),
        ((torch.zeros(3, 64, 96),) * 2, torch.tensor(0.5), "a list of numbers"),
        ((torch.zeros(3, 64, 96),) * 2, (t for t in [0.5]), "a list of numbers"),
        ((torch.zeros(3, 64, 96),) * 2, ["a"], "t = 'a' is not a number"),
        ((torch.zeros(3, 64, 96),) * 2, torch.full((2, 2), 0.5), "is not a number"),
        ((torch.full((3, 64, 96), -1.0), torch.ones(3, 64, 96)), [0.5], r"frames from -1 to -1; values in \[0, 1\]"),
        ((torch.full((3, 64, 96), torch.nan),) * 2, [0.5], "frames from nan to nan"),
    ],
)
@pytest.mark.parametrize("name", ["IFRNet_S", "average"])
def test_what_is_handed_over_wrongly_is_named(name, frames, times, message):
    call = models.Interpolator(models.build(name), "cpu") if name == "IFRNet_S" else baselines.interpolator(name)
    with pytest.raises(ValueError, match=message):
        call(*frames, times)


# Padding


PADDINGS = [
    (Padding(), (29, 43), 1.0, (2, 3, 1, 2), "replicate"),
    (Padding(), (29, 43), 0.8, (8, 9, 5, 6), "replicate"),
    (Padding("zeros", size=(48, 64), centred=False), (29, 43), 1.0, (0, 21, 0, 19), "constant"),
    (Padding("replicate", centred=False), (29, 43), 0.5, (0, 21, 0, 3), "replicate"),
    (Padding("zeros", size=(48, 64)), (64, 96), 1.0, (0, 0, 0, 0), "constant"),
]


@pytest.mark.parametrize("padding, size, scale, by_hand, mode", PADDINGS)
def test_padding_is_what_one_would_do_by_hand(model, padding, size, scale, by_hand, mode):
    """by_hand: pixels to pad left, right, top, bottom."""
    assert padding.amounts(*size, scale) == by_hand
    img0, img1 = formula_image(*size, 0), formula_image(*size, 1)
    padded = [F.pad(x[None], by_hand, mode=mode) for x in (img0, img1)]
    with torch.no_grad():
        expected = model(*padded, 0.5, scale=scale).imgt
    left, _, top, _ = by_hand
    expected = expected[..., top : top + size[0], left : left + size[1]]
    got = models.Interpolator(model, "cpu", scale=scale, padding=padding)(img0, img1)
    assert torch.equal(got, expected)


def test_divisors_and_scales_are_the_documented_ones():
    assert [smallest_divisor(scale) for scale in (1.0, 0.8, 0.5, 0.25, 2.0)] == [16, 20, 32, 64, 8]
    sizes = ((1080, 1920), (1440, 2560), (2160, 3840), (2160, 4096), (4320, 7680), (3840, 2160))
    assert [scale_for(*size) for size in sizes] == [1, 1, 0.5, 0.5, 0.25, 0.5]


def test_a_call_may_have_a_scale_of_its_own(model, pair):
    call = models.Interpolator(model, "cpu", scale="auto")
    half = models.Interpolator(model, "cpu", scale=0.5)(*pair)
    assert torch.equal(call(*pair, scale=0.5), half)
    assert torch.equal(call(*pair), models.Interpolator(model, "cpu")(*pair)) and not torch.equal(call(*pair), half)
    with pytest.raises(ValueError, match="scale 0 is out of range"):
        call(*pair, scale=0)
    with pytest.raises(ValueError, match="unknown scale 'half'; give a number or one of auto, multi"):
        call(*pair, scale="half")


def test_a_scale_is_the_nearest_fraction_that_needs_little_padding(model, pair):
    third = models.Interpolator(model, "cpu", scale=1 / 3)(*pair)
    for near in (0.333, 0.3333):  # taken exactly, sides would have to be multiples of 16000
        assert torch.equal(models.Interpolator(model, "cpu", scale=near)(*pair), third)
    with pytest.raises(ValueError, match="scale 0.03 is out of range"):
        models.Interpolator(model, "cpu", scale=0.03)


def test_bytes_are_refused_as_frames(model):
    bytes_ = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    for pair in ((bytes_, bytes_), (bytes_ / 255, bytes_), (bytes_, bytes_ / 255)):
        with pytest.raises(ValueError, match="torch.uint8"):
            models.Interpolator(model, "cpu")(*pair)


# Times


def test_several_times_at_once_are_one_at_a_time(model, pair):
    call, times = models.Interpolator(model, "cpu"), [0.25, 0.5, 0.75]
    together = call(*pair, times)
    assert torch.equal(together, torch.cat([call(*pair, [t]) for t in times]))
    assert torch.equal(together, torch.stack(list(call.each(*pair, times))))
    assert not torch.allclose(together[0], together[2])


def test_a_batch_is_its_pairs_one_by_one(model, pair):
    call = models.Interpolator(model, "cpu")
    img0, img1 = torch.stack(pair), torch.stack(pair[::-1])
    together = call(img0, img1, [0.25, 0.5])
    assert together.shape == (2, 2, 3, 64, 96)
    for i in range(2):
        torch.testing.assert_close(together[i], call(img0[i], img1[i], [0.25, 0.5]), rtol=0, atol=2e-4)


@pytest.mark.parametrize("times", [1, 7])
def test_both_frames_are_encoded_once_whatever_the_number_of_times(model, pair, times, monkeypatch):
    calls = counted_encoding(monkeypatch, model)
    models.Interpolator(model, "cpu")(*pair, [(k + 1) / (times + 1) for k in range(times)])
    assert calls == [2]


@pytest.mark.parametrize("mode", ["eager", "fast"])
@pytest.mark.parametrize("size", [(64, 96), (63, 95)])
@pytest.mark.parametrize("times", [[0.5], [0.25, 0.5]])
def test_frames_may_be_changed_in_place_and_trained_on(model, pair, times, size, mode):
    img0, img1 = (x[:, : size[0], : size[1]] for x in pair)
    frames = models.Interpolator(model, "cpu", "fp32", mode=mode)(img0, img1, times)
    before, weight = frames.sum().item(), torch.ones((), requires_grad=True)
    (weight * frames).sum().backward()
    assert weight.grad.item() == pytest.approx(before) and frames.mul_(0).sum() == 0


@pytest.mark.parametrize("t", [0, 1, -0.5, 1.5])
def test_times_outside_the_pair_are_refused(model, pair, t):
    with pytest.raises(ValueError, match="out of range"):
        models.Interpolator(model, "cpu")(*pair, [t])


def test_weights_that_do_not_read_t_refuse_all_but_the_middle(pair):
    model = formula_weights(models.build("IFRNet_S"))
    model.decoder4.convblock[0][0].weight.data[:, -1] = 0
    call = models.Interpolator(model, "cpu")
    assert not call.any_time and call(*pair, [0.5]).shape == (1, 3, 64, 96)
    with pytest.raises(ValueError, match=r"t = 0.25.*t = 0.5 alone.*(IFRNet_S|GoPro)"):
        call(*pair, [0.5, 0.25])
    with pytest.raises(ValueError, match="t = 0.25.*t = 0.5 alone"):
        call(*pair, [Fraction(1, 4)])
    model.decoder4.convblock[0][0].weight.data[:, -1] = 1
    assert copy.deepcopy(call)(*pair, [0.25]).shape == (1, 3, 64, 96)  # a copy is made from the weights of now


# Precision


def test_half_precision_is_close_to_single(calm, pair):
    single = models.Interpolator(calm, "cpu")(*pair, [0.25, 0.5])
    half = models.Interpolator(calm, "cpu", "bf16")(*pair, [0.25, 0.5])
    assert half.dtype == torch.float32 and not torch.equal(half, single)
    assert -10 * torch.log10((half - single).square().mean()) > 40


@pytest.mark.parametrize("scale, size", [(1.0, (160, 13)), (1.0, (260, 16)), ("multi", (768, 120))])
def test_half_precision_is_close_to_single_in_the_narrowest_frames(calm, scale, size):
    """With AMX, oneDNN's convolutions of stride 2 in bfloat16 read beyond rows of two pixels, whatever lies there."""
    pair = formula_image(*size, 0), formula_image(*size, 1)
    single = models.Interpolator(calm, "cpu", scale=scale)(*pair)
    call = models.Interpolator(copy.deepcopy(calm), "cpu", "bf16", scale)

    def leave_large_values(*_):
        for _ in range(3):
            _ = [torch.full((2**k,), 1e30, dtype=torch.bfloat16) for k in range(8, 17)]

    call.model.encoder.pyramid4[0][0].register_forward_pre_hook(leave_large_values)
    half = call(*pair)
    assert (half - single).square().mean() < 1e-4  # 40 dB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_gives_what_the_cpu_gives(calm, pair, precision):
    single = models.Interpolator(calm, "cpu")(*pair, [0.25, 0.5])
    other = models.Interpolator(calm, "cuda", precision, tile="auto")(*pair, [0.25, 0.5]).cpu()
    calm.cpu()
    assert -10 * torch.log10((other - single).square().mean()) > 40


WRONG = [("precision", "int8", "unknown precision 'int8'"), ("padding", Padding("circle"), "unknown padding 'circle'")]
WRONG += [("padding", padding, f"unknown padding {padding!r}; give a Padding") for padding in ("zeros", None)]
WRONG += [("scale", scale, f"scale {scale} is out of range") for scale in (0, -1, 5, Fraction(5))]
WRONG += [("tile", tile, f"tile {tile!r}; give 32 rows or more") for tile in (8, 3.5, 64.5, "rows")]
WRONG += [
    ("padding", Padding(size=size), f"padding to the size {size}; give (height, width)")
    for size in ((3,), (0, 64), (64.5, 80), "64", 64)
]


@pytest.mark.parametrize("option, value, message", WRONG)
def test_options_out_of_range_are_refused(model, option, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        models.Interpolator(model, "cpu", **{option: value})


@pytest.mark.parametrize("mode", ["eager", "fast"])
def test_numbers_of_numpy_are_numbers(model, pair, mode):
    expected = models.Interpolator(model, "cpu", "fp32", 0.5, 32, mode=mode)(*pair)
    numbers = np.float32(0.5), np.int64(32)
    assert torch.equal(models.Interpolator(model, "cpu", "fp32", *numbers, mode=mode)(*pair), expected)


def test_what_is_no_network_is_refused(model):
    call = models.Interpolator(model, "cpu")
    for other in (torch.nn.DataParallel(model), "IFRNet_S", model.state_dict(), call, baselines.Average("cpu")):
        with pytest.raises(ValueError, match=f"model of type {type(other).__name__}; an IFRNet is needed"):
            models.Interpolator(other, "cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_type_are_for_fast_mode_alone(model, pair, dtype):
    other = copy.deepcopy(model).to(dtype)
    with pytest.raises(ValueError, match=f"weights of {dtype}: eager mode in fp32 needs float32; give model.float()"):
        models.Interpolator(other, "cpu")
    frames = models.Interpolator(other, "cpu", "fp32", mode="fast")(*pair)
    assert torch.equal(frames, models.Interpolator(other.float(), "cpu", "fp32", mode="fast")(*pair))


def test_batchnorm_answers_by_its_running_statistics_even_in_a_network_still_in_training(pair):
    torch.manual_seed(0)
    network = models.build("IFRNet_S", "gelu+bn")
    network(*(x[None] for x in pair), 0.5)  # the statistics of one step
    with torch.no_grad():
        expected = copy.deepcopy(network).eval()(*(x[None] for x in pair), 0.5).imgt
    frame = models.Interpolator(network.train(), "cpu")(*pair)
    torch.testing.assert_close(frame, expected)


# Strips


@pytest.mark.parametrize("name, rows", [("IFRNet_S", 2 * REACH), ("IFRNet_L", 2 * REACH), ("IFRNet_S", 35)])
def test_strips_of_a_stack_are_the_whole_in_double_precision(name, rows):
    """Without rounding, only too short a reach could make a difference."""
    model = formula_weights(models.build(name)).double()
    strips = StripIFRNet(model, rows)
    img = torch.rand(1, 3, 96, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for whole, part in zip(model.encoder(img), strips.encoder(img), strict=True):
            torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
        features = model.encoder(img)
        for level in (3, 2, 1):
            f = features[level - 1]
            flow = 3 * torch.randn(1, 4, *f.shape[-2:], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            whole = model.refine(level, f, flow, f, f)
            torch.testing.assert_close(strips.refine(level, f, flow, f, f), whole, rtol=0, atol=1e-12)


def seams(size, rows):
    """The rows of a frame on either side of each strip's end."""
    return [row + k for row in range(rows, size, rows) for k in (-2, -1, 0, 1)]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_strips_of_real_frames_are_the_whole_also_along_the_seams(real_data, scale):
    folder = real_data / "sample_triplets" / "toflow_baseball_720p"
    img0, img1 = (io.to_float(io.read_image(folder / name)) for name in ("im1.png", "im3.png"))
    img0, img1 = (x[:, 200:488, 300:620] for x in (img0, img1))
    model = models.load("IFRNet_S")
    whole = models.Interpolator(model, "cpu", scale=scale)(img0, img1)
    strips = models.Interpolator(model, "cpu", scale=scale, tile=64)(img0, img1)
    for rows in (slice(None), seams(288, 64)):
        error = (whole - strips)[..., rows, :].square().mean()
        assert error == 0 or -10 * torch.log10(error) > 60  # dB; 50 are required


def test_strips_share_the_weights_and_leave_the_network_alone(model, pair):
    before = models.Interpolator(model, "cpu")(*pair)
    strips = StripIFRNet(model, 32)
    assert {id(p) for p in strips.parameters()} == {id(p) for p in model.parameters()}
    assert torch.equal(models.Interpolator(model, "cpu")(*pair), before)


def test_strips_are_chosen_where_the_whole_does_not_fit(model, monkeypatch):
    call = models.Interpolator(model, "cpu", tile="auto")
    assert call.memory((1, 3, 1088, 1920)) < CPU_BUDGET < call.memory((1, 3, 2160, 3840))
    assert not isinstance(call._fitting((1, 3, 1088, 1920), 1.0), StripIFRNet)
    assert isinstance(call._fitting((1, 3, 2160, 3840), 1.0), StripIFRNet)
    assert call._rows((1, 3, 2160, 3840), 1.0) == 2**19 // 3840 and call._rows((1, 3, 40000, 40000), 1.0) == 32
    one, half, double = (call.memory((1, 3, 2160, 3840), scale) for scale in (1.0, 0.5, 2.0))
    assert half < one and double - one == pytest.approx(4 * (one - half))  # the features' share goes with the area
    whole = models.Interpolator(model, "cpu")
    assert not isinstance(whole._fitting((1, 3, 2160, 3840), 1.0), StripIFRNet)


def told_peak(tile):
    """In a process of its own: print how much memory a pair takes, and the estimate."""
    torch.set_num_threads(1)
    tile = None if tile == "None" else int(tile)
    call = models.Interpolator(formula_weights(models.build("IFRNet_S")), "cpu", tile=tile)
    call(*torch.rand(2, 3, 64, 64))  # what libraries take once for themselves does not count
    size = 512, 896
    img0, img1 = torch.rand(2, 3, *size)

    def peak():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    before = peak()
    call(img0, img1)
    print(peak() - before, call.memory((1, 3, *size)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_memory_is_about_as_estimated_and_strips_take_less(tmp_path):
    peaks = []
    for tile in (None, 64):
        process = begin(tile, work=told_peak, log=tmp_path / "said.txt")
        process.join(120)
        peak, estimate = map(int, (tmp_path / "said.txt").read_text().split())
        peaks.append(peak)
    assert 0.7 * estimate < peaks[0] < 1.3 * estimate
    assert peaks[1] < 0.6 * peaks[0]
