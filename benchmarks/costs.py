"""What a call costs: its time, in turn with other calls; memory; multiply-accumulates and parameters."""

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

import models
from models.baselines import External
from models.interpolator import PRECISIONS, scales_for, smallest_divisor

WARM_UP = {"cpu": 1, "cuda": 3}  # untimed calls; on a GPU kernels are compiled in the first, recorded in the second
LEAST, MOST = 3, {"cpu": 30, "cuda": 300}  # timed rounds of calls
MATRICES = {"cpu": 2048, "cuda": 8192}  # their side: large enough for a product at full speed


def macs(model: models.IFRNet, height: int, width: int, frames: int = 1, scale: float | str = 1.0) -> int:
    """Multiply-accumulates of `frames` frames of one pair, of any size. scale: as that of an Interpolator."""
    with torch.device("meta"):
        network = models.build(model.name, model.act)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for each in scales_for(height, width, scale):
            divisor = smallest_divisor(each)
            frame = torch.empty(1, 3, *(-(-side // divisor) * divisor for side in (height, width)), device="meta")
            network(frame, frame, torch.empty(frames, device="meta"), scale=each)
    return counter.get_total_flops() // 2


def counted(call: External, pair: Sequence[Tensor]) -> tuple[int, int]:
    """Multiply-accumulates of the frame between two, by any method, and the parameters of the modules that it calls."""
    sizes = {}

    def look(module: torch.nn.Module, *_: object) -> None:
        # A lazy one has no size yet: no call has come to its module.
        sizes.update({id(weight): weight.numel() for weight in module.parameters() if not is_lazy(weight)})

    hook = torch.nn.modules.module.register_module_forward_hook(look)  # after: its first call may make its weights
    try:
        with FlopCounterMode(display=False) as counter, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using `torch.compile.*hooks")  # the counter's, and ours may look twice
            with torch.compiler.set_stance("force_eager"):  # it refuses to make one graph of what is counted
                call(*pair)
    finally:
        hook.remove()
    return counter.get_total_flops() // 2, sum(sizes.values())


def timed(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turn(calls: list[Callable[[], object]], device: torch.device, seconds: float) -> list[list[float]]:
    """Each call's times, from rounds in which the calls take turns, for about `seconds` after a warm-up."""
    for _ in range(WARM_UP[device.type]):
        last = [timed(call, device) for call in calls]
    rounds = min(max(int(seconds / sum(last)), LEAST), MOST[device.type])
    return [list(of_call) for of_call in zip(*([timed(call, device) for call in calls] for _ in range(rounds)))]


def peak_memory(call: Callable[[], object], device: torch.device) -> float | None:
    """The peak memory of a call in MB; on a CPU that of the whole process, None where the system does not tell.

    On a CPU what the process holds already counts, in use or free for the call's tensors. On a GPU the call must not
    have run yet: what its first run allocates and keeps counts. What cuDNN allocates to try its algorithms does not:
    where there is less memory, it tries those that need less.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(device)
        for _ in range(WARM_UP[device.type]):
            call()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_reserved(device) - before) / 2**20
    status, marks = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        marks.write_text("5")  # resets the peak (proc(5))
        call()
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) / 2**10


def product(device: torch.device, precision: str) -> Callable[[], object]:
    """A call that multiplies large matrices: the best that the device's matrix units can do."""
    side = MATRICES[device.type]
    return partial(torch.mm, *torch.rand(2, side, side, device=device, dtype=PRECISIONS[precision]))
