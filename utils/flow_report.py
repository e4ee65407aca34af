"""How good a teacher's flow is: the error left after warping by it, where it contradicts itself, how it looks.

Frames are RGB (B, 3, H, W) in [0, 1]; flow is (B, 2, H, W), (dx, dy) in pixels; masks are bool (B, 1, H, W).
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.flow import Teacher
from models.layers import warp
from utils.flow_check import consistent, flow_colours, inside
from utils.metrics import bounded_psnr

SCORES = ("left t->0", "left t->1", "warped dB", "averaged dB", "contradict %", "leave %")
LEGEND = """left: mean absolute difference to im2 after warping, in grey levels, where nothing leaves the frame
warped dB: PSNR of the mean of both warped frames; averaged dB: the same without flow
contradict: pixels that fail the forward-backward test (hidden in the other frame, or wrong)
leave: pixels whose flow ends outside the frame"""
RANGES = np.array([0, 1, 2, 4, 8, 16, 32])  # of motion, in pixels; the last one has no end
WIDTH, GAP = 224, 4  # of the pictures of a contact sheet, and between them, in pixels


def line(name: str, values: Iterable[str | float]) -> str:
    """A line of the table of SCORES."""
    return f"{name:14s}" + "".join(f"{v:>14s}" if isinstance(v, str) else f"{v:14.2f}" for v in values)


@torch.inference_mode()
def judge(teacher: Teacher, frames: Tensor, label: Tensor) -> tuple[list[float], list[Tensor]]:
    """One triplet's SCORES and row of the sheet. frames: (3, 3, H, W), in order of time; label: (1, 4, H, W)."""
    img0, imgt, img1 = frames.split(1)
    back = teacher.estimate(frames[[0, 2]], torch.cat([imgt, imgt]))
    flow = torch.cat(label.chunk(2, 1))
    known = flow.isfinite().all(1, keepdim=True)
    there, stays = torch.where(known, flow, 0.0), inside(flow)
    agrees = consistent(there, back)
    warped = warp(frames[[0, 2]], there)
    left = [255 * (picture - imgt[0]).abs()[:, mask[0]].mean().item() for picture, mask in zip(warped, stays)]
    mean = warped.mean(0, keepdim=True)
    score = [
        *left,
        bounded_psnr(mean, imgt).item(),
        bounded_psnr((img0 + img1) / 2, imgt).item(),
        100 * (stays & ~agrees).sum().item() / max(stays.sum().item(), 1),
        100 * (known & ~stays).float().mean().item(),
    ]
    most = float(np.percentile(there.norm(dim=1).cpu(), 99))  # torch.quantile refuses frames as large as 4K
    colours = flow_colours(torch.where(known & (agrees | ~stays), there, torch.nan), most)
    return score, [img0, imgt, img1, *colours.split(1), mean]


def error_by_motion(flow: Tensor, truth: Tensor) -> np.ndarray:
    """For each of RANGES: pixels, sum of end-point errors, pixels with an error below 1. flow, truth: (1, 4, H, W)."""
    flow, truth = (torch.cat(x.chunk(2, 1)).movedim(1, -1).reshape(-1, 2).cpu().numpy() for x in (flow, truth))
    known = np.isfinite(truth).all(1)
    error = np.linalg.norm(flow - truth, axis=1)[known]
    which = np.digitize(np.linalg.norm(truth[known], axis=1), RANGES) - 1
    return np.stack([np.bincount(which, weights, len(RANGES)) for weights in (None, error, error < 1)], 1)


def error_table(sums: np.ndarray) -> str:
    """The sums of `error_by_motion`, one line per range."""
    lines = [f"{'motion px':>12s}{'% of pixels':>14s}{'mean error px':>16s}{'% below 1 px':>14s}"]
    ranges = [f"{low}-{high}" for low, high in zip(RANGES, RANGES[1:])] + [f"{RANGES[-1]} up"]
    for name, (count, error, near) in zip([*ranges, "all"], [*sums, sums.sum(0)]):
        if count:
            share = 100 * count / sums[:, 0].sum()
            lines.append(f"{name:>12s}{share:14.1f}{error / count:16.2f}{100 * near / count:14.1f}")
    return "\n".join(lines)


def contact_sheet(rows: list[list[Tensor]]) -> Tensor:
    """Pictures (1, 3, H, W) in rows and columns, each WIDTH wide, on white: (3, H', W')."""
    cells = [[F.pad(_fit(picture), [0, GAP, 0, GAP], value=1.0) for picture in row] for row in rows]
    return torch.cat([torch.cat(row, 3) for row in cells], 2)[0].clamp(0, 1)


def _fit(picture: Tensor) -> Tensor:
    height = max(round(picture.shape[-2] * WIDTH / picture.shape[-1]), 1)
    return F.interpolate(picture, (height, WIDTH), mode="bilinear", antialias=True)
