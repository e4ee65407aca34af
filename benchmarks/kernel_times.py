"""Where the time of a call goes, by PyTorch's profiler: kernels on a GPU, operations on a CPU."""

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

ROUNDS = 5  # profiled calls, after one that is not
SHOWN = 0.01  # the smallest share of the time that is listed
LONGEST = 40  # letters of a name: libraries' kernels have their types in theirs


def kernel_times(call: Callable[[], object], device: torch.device, count: int = 1) -> list[dict]:
    """{"name", "calls", "seconds"} of everything that a call runs on the device, the longest first, divided by `count`,
    the frames or batches that the call works off. seconds: an operation's own, without those that it calls."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it reports its start, and a missing GPU, on stderr
    os.environ.setdefault("TEARDOWN_CUPTI", "0")  # else it may crash with CUDA graphs, says torch.profiler
    on_gpu = device.type == "cuda"
    call()
    if on_gpu:
        torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(ROUNDS):
            call()
        if on_gpu:
            torch.cuda.synchronize(device)
    rows, times = [], ROUNDS * count
    for event in seen.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds:
            rows.append({"name": event.key, "calls": event.count / times, "seconds": microseconds / 1e6 / times})
    return sorted(rows, key=lambda row: -row["seconds"])


def told(rows: list[dict]) -> str:
    """The rows of `kernel_times` as a line."""
    if not rows:
        return "  the profiler saw nothing; on a GPU it needs permission to read the performance counters (CUPTI)"
    total = sum(row["seconds"] for row in rows)
    parts = [
        f"{row['seconds'] / total:.0%} {row['name'][:LONGEST]} ({row['calls']:.0f})"
        for row in rows
        if row["seconds"] >= SHOWN * total
    ]
    return f"  of {1000 * total:.2f} ms: {', '.join(parts)}"
