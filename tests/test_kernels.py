"""The kernels of fast mode: each like its eager twin; native.c is built once, kept, and built again where damaged."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, triton_kernels

from models import kernels
from models.native import FLAGS, build

CPU = torch.device("cpu")


def triton():
    module, device = triton_kernels()
    return module.Triton(), device


def native():
    try:
        return kernels.Native(torch.float32), CPU
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture(params=[native, triton], ids=["native", "triton"])
def kernel(request):
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # even if the tests run with one: native kernels divide rows among them
    yield request.param()
    torch.set_num_threads(before)


def last(tensor, device=CPU):
    return tensor.to(device).contiguous(memory_format=torch.channels_last)


# Every kernel against its eager twin. Sizes are not multiples of what a program computes at a time.


def test_both_frames_are_prepared_as_by_the_twin(kernel):
    kernel, device = kernel
    torch.manual_seed(0)
    img0, img1, mean = torch.rand(2, 3, 11, 25), torch.rand(2, 3, 11, 25), torch.rand(2, 1, 1, 1)
    expected = kernels.Eager().prepare(img0, img1, mean, torch.float32)
    got = kernel.prepare(*(x.to(device) for x in (img0, img1, mean)), torch.float32)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.cpu(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("channels", [3, 24, 37])
def test_prelu_is_pytorchs_in_place_and_hands_back_the_last_channels(kernel, channels):
    kernel, device = kernel
    torch.manual_seed(0)
    x, more, slope = torch.randn(2, channels, 11, 13), torch.randn(2, channels, 11, 13), torch.rand(channels)
    y = last(x, device)
    tail = kernel.prelu(y, slope.to(device), tail=2)
    torch.testing.assert_close(y.cpu(), F.prelu(x, slope))
    torch.testing.assert_close(tail.cpu(), F.prelu(x, slope)[:, -2:])
    assert kernel.prelu(y := last(x, device), slope.to(device), add=last(more, device)) is y
    torch.testing.assert_close(y.cpu(), F.prelu(x + more, slope))
    if not isinstance(kernel, kernels.Native):
        bias, y = torch.randn(channels), last(x, device)
        kernel.prelu(y, slope.to(device), bias.to(device), add=last(more, device))
        torch.testing.assert_close(y.cpu(), F.prelu(x + bias[:, None, None] + more, slope))
    whole = torch.randn(2, channels + 5, 11, 13)
    kernel.prelu(last(x, device), slope.to(device), into=(y := last(whole, device)))
    torch.testing.assert_close(y.cpu(), torch.cat([whole[:, :5], F.prelu(x, slope)], 1))


@pytest.mark.parametrize("size", [(2, 2), (14, 22), (6, 40)])
def test_flow_grows_as_pytorch_resizes(kernel, size):
    kernel, device = kernel
    torch.manual_seed(0)
    height, width = size
    answer, coarse = torch.randn(3, 9, *size), 5 * torch.randn(3, 4, height // 2, width // 2)
    up = 2 * F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(kernel.step(last(answer, device), last(coarse, device)).cpu(), answer[:, :4] + up)
    torch.testing.assert_close(kernel.step(last(answer, device), None).cpu(), answer[:, :4])


@pytest.mark.parametrize("channels", [3, 24])
def test_a_decoders_input_is_that_of_the_twin_and_strips_are_its_rows(kernel, channels):
    kernel, device = kernel
    torch.manual_seed(0)
    answer, flow = torch.randn(4, 4 + channels, 18, 22), 12 * torch.randn(4, 4, 18, 22)  # far beyond the borders
    f0, f1, width = torch.randn(2, channels, 18, 22), torch.randn(2, channels, 18, 22), 3 * channels + 9
    expected = kernels.Eager().join(answer, flow, f0, f1, width)
    given = [last(x, device) for x in (answer, flow, f0, f1)]
    torch.testing.assert_close(kernel.join(*given, width).cpu(), expected, atol=3e-5, rtol=1e-5)
    assert (expected[:, -5:] == 0).all()
    part = kernel.join(given[0][:, :, 5:12], given[1][:, :, 5:12], *given[2:], width, top=5)
    torch.testing.assert_close(part.cpu(), expected[:, :, 5:12], atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("growth", [1, 0.75, 1.25, 2, 4], ids=lambda growth: f"{growth}x")
def test_the_last_blend_and_flow_are_those_of_the_twin(kernel, growth):
    kernel, device = kernel
    torch.manual_seed(0)
    answer, coarse = torch.randn(4, 32, 4, 6), 3 * torch.randn(4, 4, 4, 6)
    images = torch.rand(2, 2, 3, round(8 * growth), round(12 * growth))
    expected = kernels.Eager().blend(last(answer), last(coarse), *images)
    got = kernel.blend(last(answer, device), last(coarse, device), *images.to(device))
    torch.testing.assert_close(got.cpu(), expected, atol=3e-5, rtol=1e-5)
    flow = kernel.flow(last(answer, device), last(coarse, device)).cpu()
    torch.testing.assert_close(flow, kernels.Eager().step(kernels.shuffle(answer), coarse), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e30])
def test_a_flow_that_is_no_number_reads_nothing_out_of_bounds(kernel, bad):
    kernel, device = kernel
    answer, flow = torch.zeros(1, 7, 8, 8), torch.full((1, 4, 8, 8), bad)
    features = [last(torch.ones(1, 3, 8, 8), device) for _ in range(2)]
    moved = kernel.join(last(answer, device), last(flow, device), *features, 16)[:, 3:9]
    assert (moved == 1).all()


def test_a_frame_shows_where_it_is_no_number(kernel):
    kernel, device = kernel
    answer, coarse, images = torch.zeros(1, 32, 4, 6), torch.zeros(1, 4, 4, 6), torch.rand(2, 1, 3, 8, 12)
    answer[0, 6, 1, 2], images[0, 0, 1, 0, 0] = float("nan"), float("nan")  # a residual, and a pixel
    frame = kernel.blend(last(answer, device), last(coarse, device), *images.to(device)).cpu()
    assert frame.isnan().nonzero().tolist() == [[0, 1, 0, 0], [0, 1, 2, 4]]


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1])
def test_whatever_bits_are_no_number_features_show_it(bits):
    try:
        kernel = kernels.Native(torch.bfloat16)
    except OSError as error:
        pytest.skip(str(error))
    image, mean = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 1, 1)
    image.view(torch.int32)[0, 1, 1, 0] = bits
    made = kernel.prepare(image, image, mean, torch.bfloat16)
    assert made.isnan().nonzero().tolist() == [[0, 1, 1, 0], [1, 1, 1, 0]]


def test_a_row_wider_than_a_stack_is_blended():
    kernel, (answer, coarse) = native()[0], (last(torch.zeros(1, channels, 1, 2**17)) for channels in (32, 4))
    frames = torch.rand(2, 1, 3, 2, 2**18)
    torch.testing.assert_close(kernel.blend(answer, coarse, *frames), frames.mean(0))


def test_rounding_to_bfloat16_is_pytorchs():
    try:
        kernel = kernels.Native(torch.bfloat16)
    except OSError as error:
        pytest.skip(str(error))
    x = torch.randn(1, 48, 20, 20, generator=torch.Generator().manual_seed(0))
    x, slope = last(x.bfloat16()), torch.linspace(-1, 1, 48)
    expected = F.prelu(x.float(), slope).bfloat16()
    assert torch.equal(kernel.prelu(x, slope), expected)


def test_the_triton_kernels_compile_for_gpus_that_are_not_here():
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE.format(root=str(ROOT))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "compiled 7\n", done.stderr


COMPILE = """
import sys
sys.path.insert(0, {root!r})
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from models import triton_kernels

floats = ("slope", "coarse", "flow", "img0", "img1", "mean", "in_x", "in_y", "distance")
pointers = dict.fromkeys(floats, "*fp32") | {{"growth": "fp32"}}
halves = dict.fromkeys(("x", "add", "bias", "out", "tail", "answer", "f0", "f1"), "*fp16")
constants = dict(ADD=True, COARSE=True, ENLARGED=0, CHANNELS=24, TAIL=8, VALUES=1024, PIXELS=128, LANES=32, WIDTH=80)
constants |= dict(BIAS=True, ANSWER=32, IN_X=True, IN_Y=True, BORDER=3)
count = 0
names = ("_prelu", "_prepare", "_step", "_join", "_blend", "_blend", "_census")
for kernel in (getattr(triton_kernels, name) for name in names):
    constants["ENLARGED"] = count == 5
    kinds = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr") | pointers | halves
    kinds |= dict.fromkeys(("x", "y"), "*fp32") if kernel is triton_kernels._census else {{}}
    given = {{k: v for k, v in constants.items() if k in kernel.arg_names}}
    source = ASTSource(kernel, {{name: kinds[name] for name in kernel.arg_names}}, given)
    count += len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]) > 0
print("compiled", count)
"""


# Libraries


def test_a_compiler_that_fails_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(OSError, match="false cannot build native.c"):
        build(torch.float32)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty cache for libraries, which are built without optimisation to save time."""
    native()
    monkeypatch.setattr("models.native.FLAGS", ("-O0", *FLAGS[1:]))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return tmp_path


def test_what_was_built_is_kept(folder):
    first = build(torch.float32)
    made = first.stat().st_mtime_ns
    assert build(torch.float32) == first and first.stat().st_mtime_ns == made
    assert build(torch.bfloat16) != first and list(folder.rglob("*.so"))


def test_what_several_build_at_once_is_whole_for_each(folder):
    with ThreadPoolExecutor(3) as threads:
        libraries = list(threads.map(kernels.Library, [torch.float32] * 3))
    assert all(library.has("blend") for library in libraries)
    assert [path.suffix for path in folder.rglob("*") if path.is_file()] == [".so"]


def test_what_was_kept_and_is_damaged_is_built_again(folder):
    build(torch.float32).write_bytes(b"")
    assert kernels.Library(torch.float32).has("blend")
    assert build(torch.float32).stat().st_size > 1000


def test_where_nothing_can_be_kept_there_are_kernels_all_the_same(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "file"))
    assert kernels.Library(torch.float32).has("blend")


def test_a_compiler_may_be_named_with_arguments(folder, monkeypatch):
    monkeypatch.setenv("CC", "cc -DTWO='1 2' -Wall")
    assert build(torch.float32).is_file()
