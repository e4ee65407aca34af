"""How convolutions are best divided among the blocks and warps of this GPU: the measurements behind `plan_for`.

    python benchmarks/tune_convolutions.py
    python benchmarks/tune_convolutions.py --model_name IFRNet_S --sizes 3840x2160 --minutes 5

For every shape of convolution in a frame: how often it occurs, and its microseconds as fast mode computes it, with
cuDNN and what then follows it, and with the quickest plans of those tried. All are timed in turn, as CUDA graphs; times
are medians of rounds. Plans are compiled first, on all cores, once: they are kept.
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

from benchmarks.ablation import apart
from benchmarks.costs import in_turn
from benchmarks.speed_parameters import network, photograph_in_motion, size
from models import VARIANTS, cuda_convolution
from models.cuda_convolution import GROUP, KINDS, MOST, Plan, kind_of
from models.fast import Conv
from models.interpolator import Interpolator, default_device
from models.kernels import Eager
from utils import cli

RESERVED = 1024  # bytes of shared memory that a block takes besides its own
BESIDE = 34  # other registers of a thread, see registers_of
CALLS = 20  # timed as one graph
SHOWN = 3  # quickest plans
SUMS = ("in use", "cuDNN", "quickest")  # shown for a whole frame


class Limits(NamedTuple):
    """Of a GPU: bytes of shared memory for a block and in a multiprocessor, and the latter's registers."""

    block: int
    shared: int
    registers: int

    @classmethod
    def of(cls, device: torch.device) -> "Limits":
        about = torch.cuda.get_device_properties(device)
        shared = about.shared_memory_per_block_optin, about.shared_memory_per_multiprocessor
        return cls(*shared, about.regs_per_multiprocessor)


class Layer(NamedTuple):
    """A convolution as a network calls it. shape: that of its input. added: whether a tensor is added to the result;
    whole: channels of the tensor that it writes into, or None; tail: as in fast.Conv."""

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
        """Equal for layers that take the same time."""
        return kind_of(self.conv), *self.shape, self.outputs, self.added, self.whole, self.tail

    @property
    def work(self) -> int:
        """Its multiplications, up to a factor that depends on the kernel's size and stride."""
        return math.prod(self.shape) * self.outputs

    def arguments(self, device: torch.device, dtype: torch.dtype) -> tuple:
        """The convolution, and random tensors for its arguments after the kernel, see fast.Conv."""

        def values(channels: int | None, rows: int, columns: int) -> Tensor | None:
            if channels is None:
                return None
            empty = torch.empty(self.shape[0], channels, rows, columns, device=device, dtype=dtype)
            return empty.normal_().contiguous(memory_format=torch.channels_last)

        _, stride, up = KINDS[kind_of(self.conv)]
        rows, columns = (up * -(-side // stride) for side in self.shape[2:])
        add = values(self.outputs if self.added else None, rows, columns)
        return self.conv, values(*self.shape[1:]), add, values(self.whole, rows, columns), self.tail


def layers(call: Interpolator, width: int, height: int) -> Counter:
    """How often a frame uses each convolution that the CUDA kernel computes, by Layer, most work first."""
    kernel, plain, noted = call.fast.kernel, apart(call.fast.kernel), []

    def convolve(conv, x, add=None, into=None, tail=0):
        noted.append(Layer(conv, x.shape, add is not None, None if into is None else into.shape[1], tail))
        return conv(plain, x, add, into, tail)

    call.fast.kernel = listening = copy.copy(kernel)  # other Interpolators share it
    listening.convolves, listening.convolve = lambda conv, x: cuda_convolution.known(conv), convolve
    call(*photograph_in_motion(width, height))
    call.fast.kernel = kernel
    first, counts = {}, Counter()
    for layer in noted:
        counts[first.setdefault(layer.like, layer)] += 1
    return Counter(dict(sorted(counts.items(), key=lambda each: -each[1] * each[0].work)))


def plans(limits: Limits, side: int, stride: int, up: int, outputs: int) -> Iterator[Plan]:
    """Plans that fit a GPU, for a convolution with `outputs` output channels."""
    groups = -(-outputs // GROUP)
    splits = {-(-groups // count) for count in range(-(-groups // MOST), -(-groups // MOST) + 2)}
    for warps, fragments, across, of, stages in product((4, 8), (1, 2, 3, 4), (16, 32), sorted(splits), (2, 3)):
        if fragments % (across // 16) and fragments > 1 or warps * fragments * 16 % across:
            continue
        plan = Plan(side, stride, up, warps, fragments, across, of, stages)
        registers = registers_of(plan)
        blocks = min(4, limits.registers // (registers * plan.threads), limits.shared // (plan.shared + RESERVED))
        if blocks and registers <= 256 and plan.shared <= limits.block:
            yield plan._replace(blocks=blocks)


def registers_of(plan: Plan) -> int:
    """About how many registers a thread needs: for its sums, for the pixels that a column of taps reads, and BESIDE."""
    across = plan.across // 16
    read = (-(-plan.fragments // across) - 1) * plan.stride + plan.side
    return 4 * plan.groups * plan.fragments + 4 * read * min(plan.fragments, across) + BESIDE


def recorded(call: Callable[[], object], pool: tuple) -> Callable[[], object]:
    """The call, CALLS times, as a CUDA graph: launching a small kernel takes longer than running it. pool: memory that
    graphs share, as they do not run at the same time."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        for _ in range(CALLS):
            call()
    return graph.replay


def compiled(candidates: Iterable[Plan], dtype: torch.dtype, device: torch.device) -> None:
    """Compile plans, several at a time; they are kept with all other kernels."""
    capability = torch.cuda.get_device_capability(device)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda plan: cuda_convolution.built(plan.macros(dtype), capability), candidates))


def tell(layer: Layer, count: int, times: dict[Plan | str, float]) -> str:
    """A layer's times as text."""
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
    if device.type != "cuda" or not cuda_convolution.available(device, torch.float16):
        raise ValueError(f"{device}: no GPU that models/convolution.cu can be built for; run this where there is one")
    torch.backends.cudnn.benchmark = True  # as in an Interpolator that records CUDA graphs
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
    limits = Limits.of(device)
    compiled({plan for kind in kinds for plan in plans(limits, *kind)}, torch.float16, device)
    seconds = 60 * args.minutes / sum(len(counts) for *_, counts in found)
    for title, call, counts in found:
        print(title, flush=True)
        sums = Counter()
        for layer, count in counts.items():
            tried = plans(limits, *KINDS[kind_of(layer.conv)], layer.outputs)
            times = timed(layer, tried, call.fast.kernel, device, seconds)
            print(tell(layer, count, times), flush=True)
            times |= {"quickest": min(times.values())}
            sums.update({name: count * times[name] for name in SUMS})
        print("all: " + ", ".join(f"{name} {1e6 * sums[name]:.0f} us" for name in SUMS), flush=True)


def timed(
    layer: Layer, tried: Iterable[Plan], kernel: Eager, device: torch.device, seconds: float
) -> dict[Plan | str, float]:
    """Seconds of a layer with each plan tried, as a frame computes it ("in use"), and with "cuDNN"."""
    plain = apart(kernel)
    ways = {"in use": lambda conv, *rest: conv(kernel, *rest), "cuDNN": lambda conv, *rest: conv(plain, *rest)}
    ways |= {plan: partial(cuda_convolution.convolve, plan=plan) for plan in tried}
    arguments, pool = layer.arguments(device, torch.float16), torch.cuda.graph_pool_handle()
    calls = [recorded(partial(way, *arguments), pool) for way in ways.values()]
    times = in_turn(calls, device, seconds)
    return {way: statistics.median(of_way) / CALLS for way, of_way in zip(ways, times)}


def parser() -> cli.Parser:
    options = cli.Parser(__doc__)
    options.add_argument("--model_name", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="networks (all)")
    options.add_argument("--sizes", nargs="+", type=size, default=[(1280, 720)], help="of frames (default: 1280x720)")
    options.add_argument("--minutes", type=cli.amount, default=1.0, help="of timing, after compilation (default: 1)")
    cli.add_device(options)
    return options


if __name__ == "__main__":
    cli.run(main, parser())
