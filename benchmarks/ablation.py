"""What each part of fast mode is worth: the same frame with one part at a time, and with all of them but one.

The first rows are eager mode, with channels last, half precision and both; the others are fast mode without one of its
parts ("not packed" also uses the library's convolutions). What pays off is in fast mode; what does not stays here, to
be measured again on other machines.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

import models
from models.fast import best_precision
from models.interpolator import Interpolator
from models.kernels import Eager

Call = Callable[[Tensor, Tensor], Tensor]
COMPILED = "eager, channels last, compiled"


def calls(model: models.IFRNet, device: torch.device, compiled: bool = False) -> dict[tuple[str, str], Call]:
    """Ways to compute the frame between two, keyed by (what is different, precision). compiled: also torch.compile,
    which takes minutes at each size."""
    half = best_precision(device)
    ordered = copy.deepcopy(model).to(memory_format=torch.channels_last)
    eager = {
        ("eager", "fp32"): Interpolator(model, device),
        ("eager, channels last", "fp32"): Interpolator(ordered, device),
        ("eager", half): Interpolator(model, device, half),
        ("eager, channels last", half): Interpolator(ordered, device, half),
    }
    if compiled:
        eager[COMPILED, half] = call = Interpolator(copy.deepcopy(ordered), device, half)
        call.model.encode = torch.compile(call.model.encode)
        call.model.decode = torch.compile(call.model.decode)
    parts = {"no kernels of its own": without_kernels, "convolutions of the library": without_convolutions}
    if device.type == "cuda":
        parts["not recorded"] = without_recording
    else:
        parts |= {"not packed": without_packing, "whole frames": in_one_piece}
    fast = {("fast", "fp32"): Interpolator(model, device, "fp32", mode="fast")} if half != "fp32" else {}
    for name, change in parts.items():
        fast[f"fast, {name}", half] = changed = Interpolator(model, device, mode="fast")
        change(changed)
    return eager | fast | {("fast", half): Interpolator(model, device, mode="fast")}


def without_kernels(call: Interpolator) -> None:
    call.fast.kernel = Eager()


def without_recording(call: Interpolator) -> None:
    call.recorder = None


def without_convolutions(call: Interpolator) -> None:
    call.fast.kernel = apart(call.fast.kernel)


def apart(kernel: Eager) -> Eager:
    """The same kernels, but with the library's convolutions."""
    kernel = copy.copy(kernel)  # other Interpolators share it
    kernel.winograd, kernel.convolves = None, lambda *_: False
    return kernel


def without_packing(call: Interpolator) -> None:
    without_convolutions(call)
    for conv in call.fast.convs:
        conv.packs = False


def in_one_piece(call: Interpolator) -> None:
    call.tile = 2**20
