"""Interpolator: from frames of any size to frames at any times, on any device, at any precision."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .ifrnet import DIVISOR, IFRNet

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Padding(NamedTuple):
    """How a frame is brought to a size that the network takes; the result is cropped back.

    mode: "replicate" or "zeros". divisor: sides become multiples of it; None is the smallest that serves.
    size: (height, width) to pad to at least, for protocols with one fixed size. centred: both sides, or right and
    bottom alone.
    """

    mode: str = "replicate"
    divisor: int | None = None
    size: tuple[int, int] | None = None
    centred: bool = True

    def amounts(self, height: int, width: int, scale: float) -> tuple[int, int, int, int]:
        """Pixels to add left, right, top, bottom."""
        divisor = self.divisor or smallest_divisor(scale)
        least = self.size or (0, 0)
        more = [-(-max(side, low) // divisor) * divisor - side for side, low in zip((width, height), least[::-1])]
        before = [m // 2 if self.centred else 0 for m in more]
        return before[0], more[0] - before[0], before[1], more[1] - before[1]


def smallest_divisor(scale: float) -> int:
    """The smallest n such that n * scale is a multiple of the network's divisor: 16 at 1, 20 at 0.8, 32 at 0.5."""
    return (DIVISOR / Fraction(scale).limit_denominator(1000)).numerator


def check_pair(img0: Tensor, img1: Tensor) -> None:
    """ValueError where two tensors are not frames of one size, (3, H, W) or (B, 3, H, W), 2x2 or larger."""
    if img0.shape != img1.shape:
        sizes = " and ".join(f"{x.shape[-1]}x{x.shape[-2]}" for x in (img0, img1))
        raise ValueError(f"the two frames have different sizes: {sizes}")
    if img0.ndim not in (3, 4) or img0.shape[-3] != 3 or min(img0.shape[-2:]) < 2:
        raise ValueError(f"frames of shape {tuple(img0.shape)}; RGB of at least 2x2 pixels is needed, (3, H, W)")


def check_range(times: Sequence[float]) -> None:
    """ValueError where a time is outside (0, 1)."""
    for t in times:
        if not 0 < t < 1:
            raise ValueError(f"t = {t:g} is out of range; a frame lies between the two at 0 < t < 1")


class Interpolator:
    """Frames between two frames.

    model: an IFRNet; it is moved to `device` (default: where a GPU is, the GPU). precision: of the convolutions,
    "fp32", "bf16" or "fp16"; flow and coordinates are always float32. scale: size at which flow is estimated,
    relative to the frames (0.5 and below for 4K and large motion). padding: see Padding.
    """

    def __init__(
        self,
        model: IFRNet,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        scale: float = 1.0,
        padding: Padding = Padding(),
    ):
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
        if not 0 < scale <= 4:
            raise ValueError(f"scale {scale:g} is out of range; give a number above 0 and up to 4")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.any_time = model.any_time
        self.precision, self.scale, self.padding = precision, scale, padding

    def check_times(self, times: Sequence[float]) -> None:
        """ValueError where a time is outside (0, 1), or one that the weights do not know."""
        check_range(times)
        for t in times:
            if t != 0.5 and not self.any_time:
                raise ValueError(
                    f"t = {t:g}: these weights were trained at t = 0.5 alone and ignore t; use weights trained at any "
                    "t, such as the shipped IFRNet_S or a published IFRNet_*_GoPro.pth"
                )

    @torch.inference_mode()
    def __call__(self, img0: Tensor, img1: Tensor, times: Sequence[float] = (0.5,)) -> Tensor:
        """The frames at `times` between img0 and img1.

        img0, img1: (3, H, W) or (B, 3, H, W) in [0, 1], any H and W from 2 up. times: in (0, 1). Returns
        (T, 3, H, W) or (B, T, 3, H, W), float32 on the interpolator's device. ValueError for frames of different
        sizes and for times out of range or unknown to the weights.
        """
        check_pair(img0, img1)
        self.check_times(times)
        batch = img0.ndim == 4
        height, width = img0.shape[-2:]
        img0, img1 = (self._pad(x if batch else x[None]) for x in (img0, img1))
        left, _, top, _ = self.padding.amounts(height, width, self.scale)
        # The types of autocast must match the precision; float32 runs without it.
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32"):
            pair = self.model.encode(img0, img1, self.scale)
            frames = []
            for t in times:  # one after another: peak memory does not grow with the number of times
                frame = self.model.decode(pair, t).imgt.float()
                frames.append(frame[..., top : top + height, left : left + width])
        frames = torch.stack(frames, 1)
        return frames if batch else frames[0]

    def _pad(self, x: Tensor) -> Tensor:
        amounts = self.padding.amounts(*x.shape[-2:], self.scale)
        x = x.to(self.device, torch.float32)
        return F.pad(x, amounts, mode="constant" if self.padding.mode == "zeros" else self.padding.mode)
