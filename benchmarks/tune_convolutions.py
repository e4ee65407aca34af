"""How convolutions are best divided among the blocks and warps of the GPU at hand: what `plan_for` was made from.

    python benchmarks/tune_convolutions.py
    python benchmarks/tune_convolutions.py --model_name IFRNet_S --sizes 3840x2160 --minutes 5

For every convolution that a frame takes, by its shape: how often it comes, the microseconds that it takes with the plan
of models/cuda_convolution.py, as cuDNN's and what would follow it, and with the quickest plans of those tried. All are
timed in turn, as CUDA graphs, medians of rounds; plans are compiled before, half a second each on every core.
"""

import argparse
import copy
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.speed_parameters import in_turn, network, photograph_in_motion, size
from models import VARIANTS, cuda_convolution
from models.cuda_convolution import GROUP, KINDS, MOST, Plan, kind_of
from models.fast import Conv
from models.interpolator import Interpolator, default_device
from models.kernels import Eager
from utils import cli

REGISTERS, SHARED = 65_536, 227 * 1024  # of a multiprocessor: registers, and bytes of memory that blocks share
BESIDE = 34  # registers of a thread beside its sums and the pixels that it multiplies
CALLS = 20  # that are timed at a time
SHOWN = 3  # of the quickest plans
SUMS = ("in use", "cuDNN", "quickest")  # that are told of a whole frame


class Layer(NamedTuple):
    """A convolution as a network calls it. shape: of x. added: whether something is added; whole: channels of the
    tensor that it writes into, or None; tail: as in fast.Conv."""

    conv: Conv
    shape: torch.Size
    added: bool
    whole: int | None
    tail: int

    @property
    def outputs(self) -> int:
        return self.conv.weight.shape[int(self.conv.transposed)]

    @property
    def like(self) -> tuple:
        """What layers that take the same time have in common."""
        return kind_of(self.conv), *self.shape, self.outputs, self.added, self.whole, self.tail

    @property
    def work(self) -> int:
        """In proportion to its multiplications."""
        return math.prod(self.shape) * self.outputs

    def arguments(self, device: torch.device, dtype: torch.dtype) -> tuple:
        """What fast.Conv.__call__ takes after the kernel, of random values, and the convolution before."""

        def values(channels: int | None, rows: int, columns: int) -> Tensor | None:
            if channels is None:
                return None
            empty = torch.empty(self.shape[0], channels, rows, columns, device=device, dtype=dtype)
            return empty.normal_().contiguous(memory_format=torch.channels_last)

        _, stride, up = KINDS[kind_of(self.conv)]
        rows, columns = (up * -(-side // stride) for side in self.shape[2:])
        add = values(self.outputs if self.added else None, rows, columns)
        return self.conv, values(*self.shape[1:]), add, values(self.whole, rows, columns), self.tail


def apart(kernel: Eager, conv: Conv, x: Tensor, add: Tensor | None, into: Tensor | None, tail: int):
    """The convolution by PyTorch's library, and what follows it by another kernel: see fast.Conv."""
    y = conv.convolve(x)
    if conv.slope is None:
        return y
    result = kernel.prelu(y, conv.slope, conv.late, add, into, tail)
    return (y, result) if tail else result


def layers(call: Interpolator, width: int, height: int) -> Counter:
    """How often a frame takes each convolution that the CUDA kernel computes, by Layer, those of most work first."""
    kernel, noted = call.fast.kernel, []

    def convolve(conv, x, add=None, into=None, tail=0):
        noted.append(Layer(conv, x.shape, add is not None, None if into is None else into.shape[1], tail))
        return apart(kernel, conv, x, add, into, tail)

    call.fast.kernel = listening = copy.copy(kernel)  # others have the same
    listening.convolves, listening.convolve = lambda conv, x: cuda_convolution.known(conv), convolve
    call(*photograph_in_motion(width, height))
    call.fast.kernel = kernel
    first, counts = {}, Counter()
    for layer in noted:
        counts[first.setdefault(layer.like, layer)] += 1
    return Counter(dict(sorted(counts.items(), key=lambda each: -each[1] * each[0].work)))


def plans(side: int, stride: int, up: int, outputs: int) -> Iterator[Plan]:
    """Plans that fit a multiprocessor, of a convolution with so many output channels."""
    groups = -(-outputs // GROUP)
    splits = {-(-groups // count) for count in range(-(-groups // MOST), -(-groups // MOST) + 2)}
    for warps, fragments, across, of, stages in product((4, 8), (1, 2, 3, 4), (16, 32), sorted(splits), (2, 3)):
        if fragments % (across // 16) and fragments > 1 or warps * fragments * 16 % across:
            continue
        plan = Plan(side, stride, up, warps, fragments, across, of, stages)
        registers = 4 * of * fragments + 8 * fragments + BESIDE
        blocks = min(4, REGISTERS // (registers * plan.threads), SHARED // plan.shared)
        if blocks and registers <= 256:
            yield plan._replace(blocks=blocks)


def recorded(call: Callable[[], object], pool: tuple) -> Callable[[], object]:
    """The call, CALLS times, as a CUDA graph: to start a kernel takes longer than a small one does. pool: of memory,
    shared by graphs that do not run at the same time."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        for _ in range(CALLS):
            call()
    return graph.replay


def compiled(candidates: Iterable[Plan], dtype: torch.dtype, device: torch.device) -> None:
    """Compile plans, several at a time; they are kept where all kernels are."""
    capability = torch.cuda.get_device_capability(device)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda plan: cuda_convolution.built(plan.macros(dtype), capability), candidates))


def tell(layer: Layer, count: int, times: dict[Plan | str, float]) -> str:
    """A layer's times as lines."""
    side, stride, up = KINDS[kind_of(layer.conv)]
    batch, channels, height, width = layer.shape
    kind = f"{side}x{side}" + f", stride {stride}" * (stride > 1) + ", transposed" * (up > 1)
    more = ", sum" * layer.added + f", tail {layer.tail}" * bool(layer.tail)
    used, library = times["in use"], times["cuDNN"]
    text = f"{count} x {kind}, {batch}x{height}x{width}, {channels} -> {layer.outputs}{more}: "
    text += f"{1e6 * used:.1f} us, cuDNN {1e6 * library:.1f}"
    quickest = sorted((plan for plan in times if isinstance(plan, Plan)), key=times.get)[:SHOWN]
    lines = [f"    {1e6 * times[plan]:.1f} ({times[plan] / used:.0%}) {', '.join(told(plan))}" for plan in quickest]
    return "\n".join([text, *lines])


def told(plan: Plan) -> list[str]:
    return [f"{name} {value}" for name, value in plan._asdict().items() if name not in ("side", "stride", "up")]


def main(args: argparse.Namespace) -> None:
    device = args.device or default_device()
    probe = torch.zeros(1, 8, 8, 8, device=device, dtype=torch.float16)
    if device.type != "cuda" or not cuda_convolution.available(probe.device, probe.dtype):
        raise ValueError(f"{device}: no GPU that models/convolution.cu can be built for; run this where there is one")
    torch.backends.cudnn.benchmark = True  # as where an Interpolator records
    with torch.cuda.device(device):
        tune(args, device)


def tune(args: argparse.Namespace, device: torch.device) -> None:
    """Time all layers of all networks at all sizes on a GPU, the current one."""
    found = []
    for name, (width, height) in product(args.model_name, args.sizes):
        call = Interpolator(network(name)[0], device, mode="fast")
        call.recorder = None
        found.append((f"{name} at {width}x{height}", call, layers(call, width, height)))
    kinds = {(*KINDS[kind_of(layer.conv)], layer.outputs) for *_, counts in found for layer in counts}
    compiled({plan for kind in kinds for plan in plans(*kind)}, torch.float16, device)
    seconds = 60 * args.minutes / sum(len(counts) for *_, counts in found)
    for title, call, counts in found:
        print(title, flush=True)
        sums = Counter()
        for layer, count in counts.items():
            times = timed(layer, call.fast.kernel, device, seconds)
            print(tell(layer, count, times), flush=True)
            best = min(times[plan] for plan in times if isinstance(plan, Plan))
            sums.update({name: count * value for name, value in (*times.items(), ("quickest", best)) if name in SUMS})
        print("all: " + ", ".join(f"{name} {1e6 * sums[name]:.0f} us" for name in SUMS), flush=True)


def timed(layer: Layer, kernel: Eager, device: torch.device, seconds: float) -> dict[Plan | str, float]:
    """Seconds of a layer with each plan, "in use" with that of `plan_for`, by "cuDNN"."""
    tried = list(plans(*KINDS[kind_of(layer.conv)], layer.outputs))
    ways = {"in use": cuda_convolution.convolve, "cuDNN": partial(apart, kernel)}
    ways |= {plan: partial(cuda_convolution.convolve, plan=plan) for plan in tried}
    arguments, pool = layer.arguments(device, torch.float16), torch.cuda.graph_pool_handle()
    calls = [recorded(partial(way, *arguments), pool) for way in ways.values()]
    times = in_turn(calls, device, seconds)
    return {way: statistics.median(of_way) / CALLS for way, of_way in zip(ways, times)}


def parser() -> cli.Parser:
    options = cli.Parser(__doc__)
    options.add_argument("--model_name", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="networks (all)")
    options.add_argument("--sizes", nargs="+", type=size, default=[(1280, 720)], help="of frames (default: 1280x720)")
    options.add_argument("--minutes", type=cli.amount, default=1.0, help="time for all of it (default: 1)")
    cli.add_device(options)
    return options


if __name__ == "__main__":
    cli.run(main, parser())
