"""Fast mode: the same frames as the network gives, whatever the kernels, the size, the strips and the machine."""

import copy
import os
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, formula_image, formula_weights
from test_kernels import native, triton

import demo_2x
import demo_8x
import models
from models import fast, kernels, layers, multiscale, recording, strips
from models.interpolator import default_precision
from utils import io

NETWORKS = tuple(models.VARIANTS)
CPU = torch.device("cpu")
SEVERAL = torch.tensor([0.25, 0.5, 0.75, 0.3])  # two times for each of two pairs


def psnr(a, b):
    return -10 * torch.log10((a - b).square().mean()).item()


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return formula_weights(models.build(request.param))


@pytest.fixture(scope="module")
def small():
    return formula_weights(models.build("IFRNet_S"))


def pairs(height, width, count=2):
    return tuple(torch.stack([formula_image(height, width, seed + 10 * k) for k in range(count)]) for seed in (1, 2))


# The whole network


@pytest.mark.parametrize("make", [lambda: (kernels.Eager(), CPU), triton], ids=["twins", "triton"])
def test_how_channels_and_biases_lie_on_a_gpu_changes_nothing(small, make, monkeypatch):
    kernel, device = make()
    monkeypatch.setattr(fast, "for_gpu", lambda device: True)
    monkeypatch.setattr(fast, "packs", lambda *_: False)
    quick = fast.FastIFRNet(small, device, torch.float32)
    quick.kernel = kernel
    counts = {side for conv in quick.convs for side in conv.weight.shape[:2]}
    assert {count % fast.ALIGNED for count in counts - {3}} == {0} and 56 in counts  # IFRNet_S has 54
    img0, img1 = pairs(32, 48, 1)
    with torch.inference_mode():
        expected = small(img0, img1, SEVERAL).imgt
    pair = quick.encode(img0.to(device), img1.to(device))
    least = 110 if device == CPU else 50  # a GPU rounds in convolutions (TF32)
    assert psnr(quick.decode(pair, SEVERAL).imgt.cpu(), expected) > least


@pytest.mark.parametrize("plain", ["nothing", "convolutions", "all"])
def test_frames_are_those_of_the_network(network, plain):
    sizes = [pairs(*size) for size in ((64, 96), (48, 16), (16, 16))]
    with torch.inference_mode():
        expected = [network(*pair, SEVERAL).imgt for pair in sizes]
    for dtype, least in ((torch.float32, 110), (torch.bfloat16, 50)):
        quick = fast.FastIFRNet(network, CPU, dtype)
        quick.kernel = kernels.Eager() if plain == "all" else copy.copy(quick.kernel)
        if plain == "convolutions":
            quick.kernel.winograd = None
        for pair, frames in [*zip(sizes, expected)] * 2:
            assert psnr(quick.decode(quick.encode(*pair), SEVERAL).imgt, frames) > least


def test_the_flow_that_is_told_is_the_last(small):
    img0, img1 = pairs(64, 96)
    quick = fast.FastIFRNet(small, CPU, torch.float32)
    assert quick.decode(quick.encode(img0, img1), 0.5).flows == ()
    for scale in (1, 0.5):
        with torch.inference_mode():
            expected = small(img0, img1, 0.5, scale=scale).flows[0]
        (flow,) = quick.decode(quick.encode(img0, img1, scale), 0.5, flow=True).flows
        enlarged = multiscale.resize_flow(flow, (64, 96))
        torch.testing.assert_close(enlarged, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("wrong", [torch.Tensor.double, torch.Tensor.bfloat16, lambda x: (255 * x).byte()])
def test_frames_of_a_type_that_kernels_would_misread_are_refused(small, wrong):
    img0, img1 = pairs(32, 48)
    quick = fast.FastIFRNet(small, CPU, torch.float32)
    for pair in ((wrong(img0), wrong(img1)), (img0, wrong(img1))):
        with pytest.raises(ValueError, match=f"frames of {pair[1].dtype} on cpu; torch.float32 on cpu is needed"):
            quick.encode(*pair)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.8, "multi"])
def test_the_interpolator_gives_the_same_frames_in_either_mode(small, scale):
    img0, img1 = formula_image(75, 131, 1), formula_image(75, 131, 2)
    expected = models.Interpolator(small, CPU, scale=scale)(img0, img1, [0.3, 0.5])
    same = models.Interpolator(small, CPU, "fp32", scale, mode="fast")
    torch.testing.assert_close(same(img0, img1, [0.3, 0.5]), expected, atol=1e-4, rtol=0)
    quick = models.Interpolator(small, CPU, scale=scale, mode="fast")
    assert quick.precision == default_precision("fast", CPU)
    assert psnr(quick(img0, img1, [0.3, 0.5]), expected) > 50


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.8, 0.75])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("plain", [False, True], ids=["kernels", "twins"])
def test_strips_give_the_same_frames(small, scale, count, plain):
    img0, img1 = pairs(160, 64, count)
    whole, part = (models.Interpolator(small, CPU, "fp32", scale, tile=tile, mode="fast") for tile in (None, 32))
    if plain:
        whole.fast.kernel = part.fast.kernel = kernels.Eager()
    torch.testing.assert_close(part(img0, img1), whole(img0, img1), atol=1e-5, rtol=0)


def test_a_large_frame_is_worked_on_in_strips(small, monkeypatch):
    sizes = []
    monkeypatch.setattr(fast, "STRIP", 32 * 32)
    quick = fast.FastIFRNet(small, CPU, torch.float32)
    join = quick.kernel.join
    monkeypatch.setattr(quick, "kernel", spy := kernels.Eager())
    spy.join = lambda answer, *rest: sizes.append(answer.shape[-2:]) or join(answer, *rest)
    img0, img1 = pairs(256, 64, 1)
    frame = quick.decode(quick.encode(img0, img1), 0.5).imgt
    assert len(sizes) > 3 and all(rows <= 32 * 32 / columns + 2 * strips.REACH for rows, columns in sizes)
    with torch.inference_mode():
        torch.testing.assert_close(frame, small(img0, img1, 0.5).imgt, atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_pytorch_takes_unless_told_changes_nothing(small, precision, unless_told):
    img0, img1 = (x[0] for x in pairs(48, 64, 1))
    call = models.Interpolator(small, CPU, precision, mode="fast")
    expected = call(img0, img1, [0.3, 0.5])
    unless_told()
    assert torch.equal(call(img0, img1, [0.3, 0.5]), expected)
    assert torch.equal(models.Interpolator(small, CPU, precision, mode="fast")(img0, img1, [0.3, 0.5]), expected)


def test_the_network_it_was_made_from_is_left_as_it_was(small):
    before = {name: value.clone() for name, value in small.state_dict().items()}
    models.Interpolator(small, CPU, "bf16", mode="fast")(*(x[0] for x in pairs(32, 32)))
    for name, value in small.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])


def text(height, width):
    img = np.full((height, width, 3), (40, 90, 150), np.uint8)
    for line, y in enumerate(range(26, height, 30)):
        colour = (255, 255, 255) if line % 2 else (0, 0, 0)
        cv2.putText(img, f"Still text {line} " * (width // 180), (6, y), cv2.FONT_HERSHEY_SIMPLEX, 0.8, colour, 1)
    return io.to_float(img)


def test_copies_and_pickles_of_an_interpolator_are_as_quick_and_give_the_same_frames(small):
    call = models.Interpolator(small, "cpu", mode="fast", scale="multi")
    pair = formula_image(48, 64, 1), formula_image(48, 64, 2)
    for other in (copy.copy(call), copy.deepcopy(call), pickle.loads(pickle.dumps(call))):
        assert other.mode == "fast" and other.fast is not call.fast
        assert torch.equal(other(*pair, times=[0.25, 0.5]), call(*pair, times=[0.25, 0.5]))


def test_still_text_stays_still_as_the_shipped_weights_see_it():
    img, model, times = text(128, 192), models.load("IFRNet_S"), [0.25, 0.5, 0.75]
    expected = models.Interpolator(model, CPU)(img, img, times)
    frames = models.Interpolator(model, CPU, mode="fast")(img, img, times)
    assert (frames - expected).abs().max() < 1 / 255
    assert (frames - img).abs().mean() < (expected - img).abs().mean() + 0.1 / 255


def test_what_does_not_move_is_read_where_it_is(small):
    """Without motion and residual the frame is the input, to a hundredth of a grey level, also at a width of 4096."""
    native()  # PyTorch's own sampling is only half as exact
    model, img = copy.deepcopy(small), text(32, 4096)
    for level in range(1, 5):
        up = getattr(model, f"decoder{level}").convblock[2]
        for said in (slice(4), slice(5, None)) if level == 1 else (slice(4),):
            up.weight.data[:, said], up.bias.data[said] = 0, 0
    frame = models.Interpolator(model, CPU, mode="fast")(img, img)
    assert (frame - img).abs().max() < 0.01 / 255


def far(model, dx):
    """Weights that see motion of about dx pixels everywhere: to the right in one frame, to the left in the other."""
    model = copy.deepcopy(model)
    up = model.decoder1.convblock[2]
    up.weight.data[:, :4] *= 0.05
    up.weight.data[:, 5:] *= 0.02
    up.bias.data[:4] += torch.tensor([dx, 0.0, -dx, 0.0])
    return model


def test_wide_frames_and_large_motion_are_as_exact_as_small_ones(small, monkeypatch):
    """Coordinates are float32: in half precision they are pixels apart at a width of 4096."""
    model, texture = far(small, 100.0), formula_image(32, 4196, 5)
    texture = (texture + 0.2 * torch.rand(texture.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    pair = texture[..., 100:], texture[..., :-100]
    expected = models.Interpolator(model, CPU)(*pair)
    assert psnr(models.Interpolator(model, CPU, mode="fast")(*pair), expected) > 48

    def coarse(x, flow, top=0):
        columns = torch.arange(x.shape[-1]).view(1, 1, 1, -1)
        return layers.warp(x, torch.cat([(columns + flow[:, :1]).half() - columns, flow[:, 1:]], 1), top)

    monkeypatch.setattr(kernels, "warp", coarse)
    monkeypatch.setattr(kernels, "choose", lambda *_: kernels.Eager())
    assert psnr(models.Interpolator(model, CPU, "fp32", mode="fast")(*pair), expected) < 40  # what the test finds


# The start


def test_fast_mode_starts_where_it_pays(small, monkeypatch):
    one = fast.PAYS * torch.get_num_threads() / sum(p.numel() for p in small.parameters())  # pixels
    assert fast.pays(small, 1.01 * one, CPU) and not fast.pays(small, 0.99 * one, CPU)
    pixels = (1280 * 720, 2000 * 1280 * 720)  # on a GPU: a frame, and a video of a minute
    assert [fast.pays(small, many, torch.device("cuda")) for many in pixels] == [False, True]
    assert models.Interpolator(small, CPU, mode="fast", pixels=1.01 * one).mode == "fast"
    monkeypatch.setattr(fast, "FastIFRNet", None)  # nothing is built or laid out
    call = models.Interpolator(small, CPU, mode="fast", pixels=0.99 * one)
    assert (call.mode, call.precision) == ("eager", "fp32")
    pair = [x[0] for x in pairs(32, 48)]
    assert torch.equal(call(*pair), models.Interpolator(small, CPU)(*pair))


def mode_of(*args, **kwargs):
    call = models.Interpolator(*args, **kwargs, mode="auto")
    return call.mode, call.precision


def test_auto_is_fast_where_that_is_proven(small, monkeypatch, recwarn):
    half = "bf16" if fast.cpu_has_bf16() else "fp32"
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        assert mode_of(small, CPU) == ("fast", half) and mode_of(small, CPU, "fp32") == ("fast", "fp32")
        monkeypatch.setattr(fast, "cpu_has_bf16", lambda: False)
        assert mode_of(small, CPU) == ("fast", "fp32")
    assert mode_of(small, CPU, "fp16") == ("eager", "fp16")
    assert mode_of(models.build("IFRNet_S", "gelu"), CPU) == mode_of(small, CPU, pixels=1) == ("eager", "fp32")
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, mode in (((9, 0), ("fast", "fp16")), ((8, 0), ("eager", "fp32")), ((12, 0), ("eager", "fp32"))):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert fast.proven(small, gpu, None) == mode
        assert fast.proven(small, gpu, "fp32") == ("eager", "fp32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert fast.proven(models.build("IFRNet_S", "gelu"), gpu, None) == ("eager", "fp32")
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert fast.proven(small, gpu, None) == ("eager", "fp32")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SVE256")
    assert mode_of(small, CPU) == ("eager", "fp32")
    assert not recwarn.list


def test_a_demo_of_one_frame_is_as_quick_with_fast_as_without(tmp_path, typed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fast, "FastIFRNet", None)
        for name, word in (("plain", ()), ("fast", ("--fast",))):
            done = typed(demo_2x.main, demo_2x.parser(""), "--device", "cpu", "--out", tmp_path / name, *word)
            assert done.status == 0 and ("without --fast" in done.out) == bool(word), done.err
    plain, quick = ((tmp_path / name / "demo_2x.png").read_bytes() for name in ("plain", "fast"))
    assert plain == quick
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # with more, seven frames of this size are too few
    done = typed(demo_8x.main, demo_8x.parser(""), "--device", "cpu", "--out", tmp_path, "--fast")
    assert done.status == 0 and "without --fast" not in done.out, done.err


def test_the_first_frame_takes_less_than_three_seconds_of_a_processor(tmp_path):
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import demo_2x
start = time.process_time()
demo_2x.main(demo_2x.parser("").parse_args(["--device", "cpu", "--out", sys.argv[1]]))
print(time.process_time() - start)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 3


# On a GPU


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("scale", [1.0, 0.5, "multi"])
def test_recorded_frames_are_those_of_the_network_however_calls_interleave(network, scale, monkeypatch):
    monkeypatch.setattr(recording, "RECORDINGS", 2)
    monkeypatch.setattr(recording, "PATIENCE", 2)
    network = copy.deepcopy(network)  # an Interpolator moves its model
    plain, quick = (models.Interpolator(network, "cuda", scale=scale, mode=mode) for mode in ("eager", "fast"))
    sizes, times = [(64, 96), (96, 64), (128, 70), (64, 96)], [0.5, 0.25]
    for height, width in 3 * sizes:  # more shapes than are kept: dropped and recorded again
        img0, img1 = formula_image(height, width, 1), formula_image(height, width, 2)
        orders = (img0, img1), (img1, img0)
        begun = [quick.each(*order, times) for order in orders]  # both begun before either is over
        frames = [torch.stack(both) for both in zip(*(zip(*begun)))]
        for got, order in zip(frames, orders):
            assert psnr(got, plain(*order, times)) > 50
    assert quick.recorder.records and len(quick.recorder.recordings) == recording.RECORDINGS


@pytest.mark.gpu
@gpu
def test_on_a_gpu_the_interpolator_is_quick_in_half_precision(small):
    small = copy.deepcopy(small)  # an Interpolator moves its model
    call = models.Interpolator(small, "cuda", mode="fast")
    assert call.precision == "fp16" and type(call.fast.kernel).__name__ == "Triton"
    img0, img1 = formula_image(75, 131, 1), formula_image(75, 131, 2)
    expected = models.Interpolator(small, "cuda")(img0, img1, [0.3, 0.5])
    for _ in range(3):
        assert psnr(call(img0, img1, [0.3, 0.5]), expected) > 50


# The edges


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    kernels._chosen.cache_clear()
    yield
    kernels._chosen.cache_clear()


def test_without_a_compiler_it_says_so_once_and_goes_on(small, no_compiler):
    img0, img1 = pairs(32, 32, 1)
    with pytest.warns(UserWarning, match="runs in plain PyTorch, which is slower") as caught:
        quick = [fast.FastIFRNet(small, CPU, torch.float32) for _ in range(2)][1]
    assert len(caught) == 1 and type(quick.kernel) is kernels.Eager
    with torch.inference_mode():
        expected = small(img0, img1, 0.5).imgt
    torch.testing.assert_close(quick.decode(quick.encode(img0, img1), 0.5).imgt, expected, atol=1e-4, rtol=0)


def test_without_a_compiler_nothing_is_said_until_someone_asks(small, no_compiler, recwarn):
    precision = models.Interpolator(small, CPU, mode="auto").precision
    assert not recwarn.list
    with pytest.warns(UserWarning, match="runs in plain PyTorch, which is slower"):
        models.Interpolator(small, CPU, precision, mode="fast")


def test_without_half_precision_it_says_so_and_goes_on(small, monkeypatch):
    monkeypatch.setattr(fast, "cpu_has_bf16", lambda: False)
    with pytest.warns(UserWarning, match="in float32: this cpu has no instructions"):
        assert models.Interpolator(small, CPU, mode="fast").precision == "fp32"


OLDER = """
import torch, models
from models.interpolator import Interpolator
model, (img0, img1) = models.load("IFRNet_S"), torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
frames = [Interpolator(model, "cpu", mode=mode, precision="bf16")(img0, img1) for mode in ("eager", "fast")]
print((frames[0] - frames[1]).abs().max().item(), Interpolator(model, "cpu", mode="auto").precision)
"""


def test_an_older_processor_computes_bfloat16_slowly_where_it_is_asked_to():
    instructions = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OLDER], env=os.environ | instructions, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    difference, chosen = done.stdout.split()
    assert float(difference) < 0.1 and chosen == "fp32"


def test_what_it_cannot_do_is_refused_in_one_line(small):
    with pytest.raises(ValueError, match="networks with PReLU, not gelu; use eager mode, without --fast"):
        models.Interpolator(models.build("IFRNet_S", "gelu"), CPU, mode="fast")
    with pytest.raises(ValueError, match="unknown mode 'quick'; choose one of eager, fast, auto"):
        models.Interpolator(small, CPU, mode="quick")
    with pytest.raises(ValueError, match="multiples of 16"):
        fast.FastIFRNet(small, CPU, torch.float32).encode(*pairs(30, 32))
