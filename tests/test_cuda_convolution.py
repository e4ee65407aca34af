"""Convolutions of fast mode on GPUs against PyTorch's: the kernel itself, run by a GPU or emulated by a CPU."""

import ctypes
import locale
import shutil
import subprocess
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, formula_image, formula_weights

from models import cuda_convolution, fast, ifrnet, kernels
from models.cuda_convolution import Plan

EMULATED = ROOT / "tests" / "emulated_gpu.cpp"
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
KINDS = list(cuda_convolution.KINDS.values())
# For each kind of convolution, and all that a plan may be: an odd number of groups, three stages, one fragment a warp.
SQUARE, WIDE = Plan(3, 1, 1, 4, 2, 16, 3), Plan(3, 1, 1, 8, 2, 32, 9)
PLANS = {
    "a square tile": SQUARE,
    "a wide tile": WIDE,
    "three stages": SQUARE._replace(stages=3),
    "a fragment a warp": SQUARE._replace(fragments=1, across=32),
    "four fragments a warp": SQUARE._replace(fragments=4, across=32),
    "a stride of 2": SQUARE._replace(stride=2, groups=5),
    "a stride of 2, four fragments": SQUARE._replace(stride=2, fragments=4, across=32, groups=5),
    "three fragments a warp": SQUARE._replace(fragments=3),
    "transposed": SQUARE._replace(side=2, up=2, groups=4),
    "transposed, three fragments": SQUARE._replace(side=2, up=2, fragments=3, groups=5),
    "transposed, a wide tile": SQUARE._replace(side=2, up=2, across=32, groups=4),
}


@pytest.fixture(scope="module")
def emulate(tmp_path_factory):
    """A `launch` that runs the kernel on the CPU."""
    compiler = sys.platform == "linux" and shutil.which("g++")
    asked = compiler and subprocess.run([compiler, "-xc++", "-fsyntax-only", "-"], input=b"static _Float16 x;")
    if not asked or asked.returncode:
        pytest.skip("there is no g++ that knows float16")
    folder = tmp_path_factory.mktemp("emulated")

    @cache
    def library(plan, dtype):
        target = folder / f"{len(list(folder.iterdir()))}.so"
        macros = plan.macros(dtype) | {"SHARED": plan.shared, "SOURCE": f'"{cuda_convolution.SOURCE}"'}
        defines = [f"-D{name}={value}" for name, value in macros.items()]
        command = [compiler, "-O2", "-std=c++17", "-shared", "-fPIC", *defines, str(EMULATED), "-o", str(target)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(target))

    def launch(plan, dtype, grid, tensors, numbers):
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        types = (ctypes.c_int * 3, ctypes.c_void_p * 7, ctypes.c_int * 8)
        library(plan, dtype).run(*(kind(*values) for kind, values in zip(types, (grid, pointers, numbers))))

    return launch, torch.device("cpu")


@pytest.fixture(params=["emulated", pytest.param("real", marks=[pytest.mark.gpu, gpu])])
def launch(request):
    if request.param == "emulated":
        return request.getfixturevalue("emulate")
    if not cuda_convolution.available(torch.device("cuda"), torch.float16):
        pytest.skip("the convolutions cannot be built for this GPU")
    return cuda_convolution.launch, torch.device("cuda")


def convolution(plan, inputs, outputs, dtype, device, prelu=True):
    """A convolution with the attributes of fast.Conv and random weights."""
    shape = (inputs, outputs, 4, 4) if plan.up == 2 else (outputs, inputs, 3, 3)
    return SimpleNamespace(
        transposed=plan.up == 2,
        stride=[plan.stride * plan.up] * 2,
        weight=(torch.randn(shape) / (9 * inputs) ** 0.5).to(device, dtype),
        bias=torch.randn(outputs).to(device, dtype),
        slope=torch.rand(outputs).to(device) if prelu else None,
        packed={},
    )


def expected(conv, x, add=None):
    weight, bias = conv.weight.double().cpu(), conv.bias.double().cpu()
    function = F.conv_transpose2d if conv.transposed else F.conv2d
    y = function(x.double().cpu(), weight, bias, conv.stride, 1)
    y = y if add is None else y + add.double().cpu()
    return y if conv.slope is None else F.prelu(y, conv.slope.double().cpu())


def last(x, dtype, device):
    return x.to(device, dtype, memory_format=torch.channels_last)


def close(got, wanted):
    """Within the rounding of the result, and of a sum of a thousand products in float32."""
    share = 2**-8 if got.dtype == torch.bfloat16 else 2**-11
    torch.testing.assert_close(got.double().cpu(), wanted, rtol=1.02 * share, atol=1e-5)


@pytest.mark.parametrize("name", [*PLANS, "bfloat16"])
def test_it_is_pytorchs_convolution(name, launch, monkeypatch):
    """Sizes are not multiples of a tile's, nor inputs of a step's 16 channels, nor outputs of a tile's groups."""
    launch, device = launch
    torch.manual_seed(0)
    plan, dtype = PLANS.get(name, SQUARE), torch.bfloat16 if name == "bfloat16" else torch.float16
    monkeypatch.setattr(cuda_convolution, "plan_for", lambda *_: plan)
    inputs, outputs = 24, 8 * plan.groups + 8
    for batch, size, prelu in ((2, (11, 21), True), (1, (3, 35), False)):
        conv = convolution(plan, inputs, outputs, dtype, device, prelu)
        x = last(torch.randn(batch, inputs, *size), dtype, device)
        got = cuda_convolution.run(launch, conv, x, None, None, 0)
        assert got.is_contiguous(memory_format=torch.channels_last)
        close(got, expected(conv, x))


def test_it_adds_and_writes_beside_what_there_is_and_apart(launch, monkeypatch):
    launch, device = launch
    torch.manual_seed(0)
    monkeypatch.setattr(cuda_convolution, "plan_for", lambda *_: SQUARE)
    half = torch.float16
    conv = convolution(SQUARE, 16, 40, half, device)
    x, add, whole = (last(torch.randn(1, count, 9, 18), half, device) for count in (16, 40, 64))
    before = whole[:, :24].clone()
    got = cuda_convolution.run(launch, conv, x, add, whole, 0)
    assert got is whole and torch.equal(whole[:, :24], before)
    close(whole[:, 24:], expected(conv, x, add))

    got, side = cuda_convolution.run(launch, conv, x, None, None, 16)
    close(got[:, :24], expected(conv, x)[:, :24])
    close(side, expected(conv, x)[:, 24:])
    assert side.is_contiguous(memory_format=torch.channels_last)


class Emulated(kernels.Eager):
    """A GPU's convolutions; the rest in plain PyTorch."""

    one_pass = True

    def __init__(self, launch):
        self.launch = launch

    def convolves(self, conv, x):
        return cuda_convolution.known(conv)

    def convolve(self, conv, x, add=None, into=None, tail=0):
        return cuda_convolution.run(self.launch, conv, x, add, into, tail)


@pytest.mark.parametrize("stem", [3, 7])
def test_a_network_of_them_gives_its_frames(stem, emulate, monkeypatch):
    launch, device = emulate
    monkeypatch.setattr(fast, "for_gpu", lambda device: True)
    # One plan for each kind, with small tiles: an emulator takes a second to build, and few pixels of a tile are used.
    plans = {kind: Plan(*kind, 2, 1, 16, 4) for kind in KINDS}
    monkeypatch.setattr(cuda_convolution, "plan_for", lambda *sizes: plans[sizes[:3]])
    small = formula_weights(ifrnet.IFRNet(ifrnet.Variant((8, 16, 20, 24), stem, 8)))
    quick = fast.FastIFRNet(small, device, torch.float16)
    quick.kernel = Emulated(launch)
    img0, img1 = (formula_image(16, 16, seed)[None] for seed in (1, 2))
    with torch.inference_mode():
        wanted = small(img0, img1, torch.tensor([0.3])).imgt
    got = quick.decode(quick.encode(img0, img1), 0.3).imgt
    assert -10 * torch.log10((got - wanted).square().mean()) > 60


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(2, 2), (45, 80), (360, 640), (1080, 1920)])
def test_a_plan_fits_any_gpu_and_covers_the_output(kind, size):
    for outputs in range(8, 400, 8):
        plan = cuda_convolution.plan_for(*kind, 1, *size, outputs)
        tiles, split, parts = plan.grid(1, *size, outputs)
        assert plan.shared <= 99 * 1024  # the least that GPUs of capability 8.0 and later give a block
        assert tiles * plan.tall * plan.across >= size[0] * size[1] and parts == kind[2] ** 2
        assert split * plan.groups * 8 >= outputs > (split - 1) * plan.groups * 8
        # Sums are in registers, of which a multiprocessor has 65,536.
        assert plan.threads * plan.blocks * (4 * plan.groups * plan.fragments + 30) <= 65536


@pytest.mark.parametrize(
    "quicker, inputs, outputs, stride, size",
    [  # microseconds of the kernel and of cuDNN on an H200
        (False, 192, 192, 1, (1, 45, 80)),  # 12, 14
        (False, 144, 144, 1, (1, 180, 320)),  # 59, 68
        (False, 192, 32, 1, (1, 360, 640)),  # 73, 129
        (False, 72, 96, 2, (2, 90, 160)),  # 9, 12
        (True, 216, 216, 1, (1, 90, 160)),  # 40, 38
        (True, 384, 384, 1, (1, 45, 80)),  # 33, 27
        (True, 192, 192, 1, (1, 360, 640)),  # 350, 271
        (True, 288, 288, 1, (1, 180, 320)),  # 209, 155
    ],
)
def test_what_cudnn_does_quicker_is_left_to_it(quicker, inputs, outputs, stride, size):
    conv = SimpleNamespace(transposed=False, weight=torch.empty(outputs, inputs, 3, 3), stride=[stride] * 2)
    x = torch.empty(size[0], inputs, *size[1:], device="meta")
    assert cuda_convolution.left_to_cudnn(conv, x) == quicker
    conv.transposed, conv.weight = True, torch.empty(inputs, outputs, 4, 4)
    assert not cuda_convolution.left_to_cudnn(conv, x)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_it_compiles_for_gpus_that_are_not_here_and_is_kept(capability, tmp_path, monkeypatch):
    pytest.importorskip("cuda.bindings.nvrtc")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    macros = cuda_convolution.plan_for(3, 1, 1, 1, 360, 640, 72).macros(torch.float16)
    letters = locale.getpreferredencoding(False)
    code = cuda_convolution.built(macros, capability)
    assert code[:4] == b"\x7fELF" and locale.getpreferredencoding(False) == letters
    (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
    kept.write_bytes(b"kept")
    assert cuda_convolution.built(macros, capability) == b"kept"
    assert cuda_convolution.built(macros | {"BFLOAT16": 1}, capability) != b"kept"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(kept))  # a file, so that nothing can be kept there
    assert cuda_convolution.built(macros, capability) == code
    assert [path for path in tmp_path.rglob("*") if path.suffix != ".cubin" and path.is_file()] == []
    with pytest.raises(RuntimeError, match="convolution.cu cannot be compiled: .*nothing"):
        cuda_convolution.built({**macros, "SIDE": "nothing"}, capability)


def test_what_was_kept_and_is_damaged_is_compiled_again(tmp_path, monkeypatch):
    pytest.importorskip("cuda.bindings.nvrtc")
    from cuda.bindings import driver

    def load(code):
        return (0, code) if code[:4] == b"\x7fELF" else (200, None)  # CUDA_ERROR_INVALID_IMAGE

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(driver, "cuModuleLoadData", load)
    monkeypatch.setattr(driver, "cuModuleGetFunction", lambda module, name: (0, module))
    monkeypatch.setattr(driver, "cuFuncSetAttribute", lambda *_: (0,))
    code = cuda_convolution.loaded.__wrapped__(0, torch.float16, SQUARE)
    (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
    kept.write_bytes(code[1:])
    assert cuda_convolution.loaded.__wrapped__(0, torch.float16, SQUARE) == kept.read_bytes() == code
