"""Convolutions for GPUs, with bias, sum and PReLU fused: convolution.cu, compiled for the device when first used.

cuDNN's leave bias, sum and activation to separate passes over memory, and are made for more channels than these
networks have. Needs the package cuda-bindings, which recent PyTorch for Linux brings, and tensor cores for float16 and
bfloat16.
"""

import hashlib
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ctypes import c_int, c_void_p
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import empty
from .native import cache_folder, write

SOURCE = Path(__file__).with_name("convolution.cu")
LEAST = (8, 0)  # compute capability
STEP, GROUP = 16, 8  # input channels that are multiplied at a time; output channels of a group
MOST, FEWEST = 9, 6  # groups of a tile: their sums are in registers; fewer groups make more tiles
# A fast.Conv's (transposed, side, stride) -> SIDE, STRIDE and UP of convolution.cu.
KINDS = {(False, 3, 1): (3, 1, 1), (False, 3, 2): (3, 2, 1), (True, 4, 2): (2, 1, 2)}
WAVE = 132  # multiprocessors of a large GPU: so many tiles keep it busy
NARROW = 5  # groups of which a warp holds three fragments' sums, where there are tiles for four blocks everywhere
MANY, MUCH = 192, 4e8  # output channels, and multiplications of a tap, from which on cuDNN is quicker
SPARE = 256  # bytes at the end of shared memory that are read, but not used, where the number of groups is odd


class Plan(NamedTuple):
    """How a convolution is divided among blocks and warps: see convolution.cu."""

    side: int
    stride: int
    up: int
    warps: int
    fragments: int
    across: int
    groups: int
    stages: int = 2
    blocks: int = 2

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def tall(self) -> int:
        """Rows of a tile."""
        return self.warps * self.fragments * 16 // self.across

    @property
    def shared(self) -> int:
        """Bytes of shared memory per block."""
        columns = -(-((self.across - 1) * self.stride + self.side) // 8) * 8
        pixels = ((self.tall - 1) * self.stride + self.side) * columns
        return 2 * STEP * self.stages * (pixels + self.side**2 * GROUP * self.groups) + SPARE

    def macros(self, dtype: torch.dtype) -> dict[str, int]:
        names = {name.upper(): value for name, value in self._asdict().items()}
        return names | ({"BFLOAT16": 1} if dtype == torch.bfloat16 else {})

    def grid(self, batch: int, rows: int, columns: int, outputs: int) -> tuple[int, int, int]:
        """The grid of blocks: tiles of a part of the output, parts of its channels, parts of all inputs."""
        tiles = -(-rows // self.tall) * -(-columns // self.across)
        return tiles, -(-outputs // (GROUP * self.groups)), batch * self.up**2


def plan_for(side: int, stride: int, up: int, batch: int, rows: int, columns: int, outputs: int) -> Plan:
    """A fast plan, as measured on an H200. rows, columns: of the output, or of one of its four parts where `up` is 2;
    outputs: channels. benchmarks/tune_convolutions.py measures it against others."""
    groups = -(-outputs // GROUP)
    narrow = Plan(side, stride, up, 4, 3, 16, groups, blocks=4)
    if stride == 1 and groups <= NARROW and math.prod(narrow.grid(batch, rows, columns, outputs)) >= 4 * WAVE:
        return narrow
    across = 32 if up == 2 and columns >= 128 else 16
    for split in count(-(-groups // MOST)):
        plan = Plan(side, stride, up, 4, 2, across, -(-groups // split), blocks=4 if stride == 1 else 3)
        if math.prod(plan.grid(batch, rows, columns, outputs)) >= WAVE or plan.groups <= FEWEST:
            return plan


def kind_of(conv) -> tuple[bool, int, int]:
    """The key of a fast.Conv in KINDS."""
    return conv.transposed, conv.weight.shape[-1], conv.stride[0]


def known(conv) -> bool:
    """Whether the kernel can compute a fast.Conv: not, for one, the 7 x 7 stem of IFRNet_L."""
    return kind_of(conv) in KINDS and not any(channels % GROUP for channels in conv.weight.shape[:2])


def left_to_cudnn(conv, x: Tensor) -> bool:
    """Whether cuDNN is quicker, as measured on an H200: with many channels of many pixels."""
    outputs = conv.weight.shape[int(conv.transposed)]
    return not conv.transposed and outputs >= MANY and math.prod(x.shape) // conv.stride[0] ** 2 * outputs >= MUCH


def serves(conv, x: Tensor) -> bool:
    """Whether the kernel can convolve x: values of an input are counted in 31 bits, inputs in 14."""
    suits = known(conv) and not left_to_cudnn(conv, x) and len(x) < 2**14 and math.prod(x.shape[1:]) < 2**31
    return suits and x.is_cuda and x.dtype in (torch.float16, torch.bfloat16) and available(x.device, x.dtype)


@cache
def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel can be built for a device; warns once if it should, but cannot."""
    if torch.cuda.get_device_capability(device) < LEAST:
        return False
    torch.empty(1, device=device)  # the driver needs the context that PyTorch makes for its first tensor
    try:
        with torch.cuda.device(device):
            loaded(torch.cuda.current_device(), dtype, Plan(3, 1, 1, 8, 2, 32, 1))
    except Exception as error:  # other bindings, a GPU that this compiler does not know
        why = "the package cuda-bindings is missing" if isinstance(error, ImportError) else error
        warnings.warn(f"fast mode uses cuDNN's convolutions, which are slower: {why}", stacklevel=2)
        return False
    return True


def convolve(
    conv, x: Tensor, add: Tensor | None, into: Tensor | None, tail: int, plan: Plan | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """See fast.Conv. plan: in place of that of plan_for."""
    with torch.cuda.device_of(x):
        return run(launch, conv, x, add, into, tail, plan)


def run(
    launch: Callable,
    conv,
    x: Tensor,
    add: Tensor | None,
    into: Tensor | None,
    tail: int,
    plan: Plan | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`convolve`, with the kernel launched by `launch`."""
    batch, channels, height, width = x.shape
    side, stride, up = KINDS[kind_of(conv)]
    outputs = conv.weight.shape[int(conv.transposed)]
    rows, columns = -(-height // stride), -(-width // stride)
    plan = plan or plan_for(side, stride, up, batch, rows, columns, outputs)
    if plan.groups not in conv.packed:
        conv.packed[plan.groups] = lay_out(conv, plan)
    weight, bias, slope = conv.packed[plan.groups]
    if into is None:
        shape = (batch, outputs, up * rows, up * columns)
        into = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    over = empty(into, tail) if tail else None
    x = x.contiguous(memory_format=torch.channels_last)
    tensors = (x, weight, bias, slope, add, into[:, -outputs:], over)
    numbers = (height, width, rows, columns, channels, outputs, into.shape[1], tail)
    launch(plan, x.dtype, plan.grid(batch, rows, columns, outputs), tensors, numbers)
    return (into, over) if tail else into


def lay_out(conv, plan: Plan) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weights, bias and slopes as the kernel reads them, padded with zeros to whole steps and tiles."""
    weight = conv.weight
    if plan.up == 2:  # the even rows and columns read taps 3 and 1, the odd ones 2 and 0
        taps = torch.tensor([[3, 1], [2, 0]], device=weight.device)
        weight = weight[:, :, taps][..., taps].permute(2, 4, 1, 0, 3, 5).flatten(0, 1)
    else:
        weight = weight[None]
    outputs, inputs = weight.shape[1:3]
    tile = GROUP * plan.groups
    more = -outputs % tile
    weight = F.pad(weight.flatten(3), (0, 0, 0, -inputs % STEP, 0, more))
    weight = weight.unflatten(2, (-1, STEP)).unflatten(1, (-1, tile)).permute(0, 1, 3, 5, 2, 4)
    # In four rows of eight the halves are swapped: see `place` in convolution.cu.
    swapped = torch.arange(tile, device=weight.device) // 4 % 2 == 1
    weight = torch.where(swapped[:, None], weight.roll(STEP // 2, -1), weight).contiguous()
    bias, slope = (None if v is None else F.pad(v.float(), (0, more)) for v in (conv.bias, conv.slope))
    return weight, bias, slope


def launch(plan: Plan, dtype: torch.dtype, grid: tuple, tensors: tuple[Tensor | None, ...], numbers: tuple) -> None:
    """Launch the kernel on the current device and stream. tensors, numbers: its arguments in order."""
    from cuda.bindings import driver

    values = (*(0 if t is None else t.data_ptr() for t in tensors), *numbers)
    types = (*[c_void_p] * len(tensors), *[c_int] * len(numbers))
    stream = torch.cuda.current_stream().cuda_stream
    kernel = loaded(torch.cuda.current_device(), dtype, plan)
    check(driver.cuLaunchKernel(kernel, *grid, plan.threads, 1, 1, plan.shared, stream, (values, types), 0))


@cache
def loaded(device: int, dtype: torch.dtype, plan: Plan):
    """The kernel, ready on a device."""
    from cuda.bindings import driver

    capability = torch.cuda.get_device_capability(device)
    error, module = driver.cuModuleLoadData(built(plan.macros(dtype), capability))
    if int(error):  # the cached file may be damaged
        module = check(driver.cuModuleLoadData(built(plan.macros(dtype), capability, anew=True)))
    kernel = check(driver.cuModuleGetFunction(module, b"convolve"))
    most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    check(driver.cuFuncSetAttribute(kernel, most, plan.shared))
    return kernel


def built(macros: dict[str, int], capability: tuple[int, int], anew: bool = False) -> bytes:
    """The machine code for a GPU, compiled once (less than a second) and cached where PyTorch keeps its extensions, if
    possible. anew: compile it even if it is cached. RuntimeError where it cannot be compiled."""
    from cuda.bindings import nvrtc

    source = SOURCE.read_bytes()
    options = [f"--gpu-architecture=sm_{''.join(map(str, capability))}", "--std=c++17"]
    options = [o.encode() for o in (*options, *(f"-D{name}={value}" for name, value in macros.items()))]
    version = repr(check(nvrtc.nvrtcVersion())).encode()
    digest = hashlib.sha256(b"|".join([source, version, *options])).hexdigest()[:16]
    file = None
    with suppress(OSError, RuntimeError):  # the home directory may be missing or unreadable
        file = cache_folder() / f"convolution-{digest}.cubin"
        if not anew:
            return file.read_bytes()
    with ThreadPoolExecutor(1) as alone:  # NVRTC 12.4 leaves its thread in the C locale: ASCII alone
        code = alone.submit(_compiled, source, options).result()
    if file:
        with suppress(OSError):
            write(file, code)
    return code


def _compiled(source: bytes, options: list[bytes]) -> bytes:
    from cuda.bindings import nvrtc

    program = check(nvrtc.nvrtcCreateProgram(source, SOURCE.name.encode(), 0, [], []))
    result = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(result[0]):
        log = bytes(check(nvrtc.nvrtcGetProgramLogSize(program)))
        nvrtc.nvrtcGetProgramLog(program, log)
        text = log.decode(errors="replace").rstrip("\0")
        raise RuntimeError(f"{SOURCE.name} cannot be compiled: {text[:300]}")
    code = bytes(check(nvrtc.nvrtcGetCUBINSize(program)))
    check(nvrtc.nvrtcGetCUBIN(program, code))
    check(nvrtc.nvrtcDestroyProgram(program))
    return code


def check(result: tuple):
    """What a CUDA function returned beside its status. RuntimeError where it failed."""
    error, *values = result
    if int(error):
        raise RuntimeError(f"{error!r}")
    return values[0] if len(values) == 1 else tuple(values)
