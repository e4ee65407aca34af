"""What the time of a call goes into, as PyTorch's profiler sees it: kernels on a GPU, operations on a CPU."""

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

ROUNDS = 5  # calls that are looked at, after one that is not
SHOWN = 0.01  # share of the time from which on a name is told
LONGEST = 40  # letters of a name: those of libraries' kernels tell their types


def kernel_times(call: Callable[[], object], device: torch.device, count: int = 1) -> list[dict]:
    """{"name", "calls", "seconds"} of everything that a call runs on the device, the longest first: of one of the
    `count` times that it does its work. seconds: without what the operation itself calls."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it says on stderr when it starts, and that there is no GPU
    os.environ.setdefault("TEARDOWN_CUPTI", "0")  # torch.profiler knows it to crash where there are CUDA graphs
    on_gpu = device.type == "cuda"
    call()
    if on_gpu:
        torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(ROUNDS):
            call()
        if on_gpu:
            torch.cuda.synchronize(device)
    rows = []
    for event in seen.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds:
            times = ROUNDS * count
            rows.append({"name": event.key, "calls": event.count / times, "seconds": microseconds / 1e6 / times})
    return sorted(rows, key=lambda row: -row["seconds"])


def told(rows: list[dict]) -> str:
    """The rows of `kernel_times` as a line."""
    if not rows:
        return "  the profiler saw nothing; of a GPU it tells those alone who may read its counters (CUPTI)"
    total = sum(row["seconds"] for row in rows)
    parts = [
        f"{row['seconds'] / total:.0%} {row['name'][:LONGEST]} ({row['calls']:.0f})"
        for row in rows
        if row["seconds"] >= SHOWN * total
    ]
    return f"  of {1000 * total:.2f} ms: {', '.join(parts)}"
