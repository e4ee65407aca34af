"""The scoring loop of all benchmarks: protocols, metrics, and pictures of a few cases for the report."""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import store
from benchmarks.cases import Batches, Case, Split, read
from benchmarks.store import Score
from models import Interpolator
from models.baselines import Baseline, Dis
from models.flow.dis import DIS
from models.strips import StripIFRNet
from utils import distributed, io, metrics
from utils.batches import load
from utils.flow_check import flow_colours
from utils.lpips import LPIPS
from utils.motion import scale_by_motion

METRICS = {"psnr": metrics.bounded_psnr, "ssim": metrics.ssim, "ssim_2d": metrics.ssim_2d, "ie": metrics.ie}
MORE_METRICS = ("lpips", "warp")  # one needs weights, one looks at all frames of a case at once
STRIP_ROWS = 64  # rows of a strip, where a frame is too large to be processed whole


class Protocol(NamedTuple):
    """rounded: predictions are rounded to 8 bits before they are scored. turned: each is averaged with the prediction
    for frames rotated by 180 degrees, rotated back (test-time augmentation)."""

    rounded: bool = False
    turned: bool = False


PROTOCOLS = {
    "paper": Protocol(),
    "uint8": Protocol(rounded=True),  # RIFE and others: about 0.02 dB less at 36 dB
    "ema": Protocol(rounded=True, turned=True),  # EMA-VFI, which also runs SNU-FILM at scale 0.5
}


class Contender(NamedTuple):
    """A model to score. call: see models.baselines.interpolator. protocol: how it predicts. about: what results record
    of it."""

    call: Interpolator | Baseline
    protocol: Protocol
    about: dict

    def predict(self, img0: Tensor, img1: Tensor, times: Sequence[float], scale: float | None) -> Tensor:
        """(B, 3, H, W) twice -> (B, T, 3, H, W), turned and rounded by the protocol. scale: see Interpolator."""
        frames = self.call(img0, img1, times, scale)
        if self.protocol.turned:
            frames = (frames + self.call(img0.flip(-2, -1), img1.flip(-2, -1), times, scale).flip(-2, -1)) / 2
        return (frames * 255).round() / 255 if self.protocol.rounded else frames

    def scale(self, img0: np.ndarray, img1: np.ndarray) -> float | None:
        """The scale of flow estimation between two images, if it follows their motion; None for that of `call`."""
        return scale_by_motion(img0, img1) if self.about.get("scale") == "auto" else None


def score_all(
    contender: Contender,
    splits: list[Split],
    args: argparse.Namespace,
    progress: store.Progress,
    frames: Path | None,
    scorers: dict[str, Callable],
) -> list[Score]:
    """The scores of all cases, in order, on every rank."""
    batches = Batches(splits, args.batch_size)
    known, name = progress.read(batches.mark), store.called(contender.about)
    if known:
        distributed.say(f"{name}: {len(known)} of {len(batches)} batches were scored before; going on from there")
    todo = distributed.shard([[batch] for batch in range(len(batches)) if batch not in known])
    workers = args.workers if args.workers is not None else 8 if contender.call.device.type == "cuda" else 1
    # Arrays come through a pipe; tensors would come through shared memory, of which containers have little.
    # Two batches ahead: one of X-TEST in 4K takes 240 MB.
    loader = load(batches, todo, min(workers, len(todo)), collate=itemgetter(0), depth=2)
    quiet = None if distributed.is_main() else True
    bar = tqdm(loader, total=len(todo), desc=name, unit="batch", disable=quiet)
    mine = {}
    with progress.writer() as write:
        for batch, stacks in bar:
            members, mark = batches.members(batch), batches.mark(batch)
            mine[batch] = score_batch(contender, members, stacks, scorers, frames)
            broken = next((score for score in mine[batch] if score.broken), None)
            if broken and not args.skip_broken:
                raise ValueError(f"{broken.broken} (case {broken.name}); --skip_broken leaves such cases out")
            if not broken:  # a broken case may be repaired before the next run
                write(batch, mark, mine[batch])
    for others in distributed.gather(mine):
        known |= others
    scores = [score for batch in sorted(known) for score in known[batch]]
    if all(score.broken for score in scores):
        raise ValueError(f"every case is broken; the first: {scores[0].broken}")
    return scores


def score_batch(
    contender: Contender,
    members: list[tuple[Split, Case]],
    stacks: list[np.ndarray | str],
    scorers: dict[str, Callable],
    frames: Path | None,
) -> list[Score]:
    """Scores of a batch; cases of the same size, times and scale go through the model together."""
    scores: dict[int, Score] = {}
    groups: dict[tuple, list[int]] = {}
    for i, ((split, case), stack) in enumerate(zip(members, stacks)):
        if isinstance(stack, str):
            scores[i] = Score(split.name, case.name, {}, broken=stack)
        else:
            groups.setdefault((stack.shape, case.times, contender.scale(*stack[:2])), []).append(i)
    for (_, times, scale), indices in groups.items():
        stack = io.to_float(np.stack([stacks[i] for i in indices]), contender.call.device)
        prediction = contender.predict(stack[:, 0], stack[:, 1], times, scale)
        try:
            values = {name: score(prediction, stack).tolist() for name, score in scorers.items()}
        except ValueError as error:  # such as frames that are too small for a metric
            raise ValueError(f"{members[indices[0]][1].img0}: {error}") from error
        for place, i in enumerate(indices):
            split, case = members[i]
            scores[i] = Score(split.name, case.name, {name: values[name][place] for name in scorers})
            check_finite(contender, case, scores[i])
            if frames is not None:
                write_frames(frames / split.name, case, prediction[place])
    return [scores[i] for i in range(len(members))]


def check_finite(contender: Contender, case: Case, score: Score) -> None:
    network = "the checkpoint, or try --precision fp32"
    check = network if "checkpoint" in contender.about else f"what {contender.about['model']} returns"
    for name, of_case in score.values.items():
        if not all(map(math.isfinite, of_case)):
            raise ValueError(f"{case.img0}: {name} is not finite; check {check}")


def write_frames(folder: Path, case: Case, prediction: Tensor) -> None:
    """The predictions of a case, (T, 3, H, W), as pictures that have its name, and where there are several also t."""
    for t, frame in zip(case.times, io.to_uint8(prediction)):
        several = f"_t{t:.4f}" if len(case.times) > 1 else ""
        io.write_image(folder / f"{case.name}{several}.png", frame)


def scorer(name: str, args: argparse.Namespace, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """A metric as (prediction (B, T, 3, H, W), img0, img1 and targets (B, 2 + T, 3, H, W)) -> (B, T), or (B, 1) where
    it is one number per case. ValueError for LPIPS without its weights."""
    if name == "warp":
        return partial(temporal, DIS())
    metric = METRICS.get(name) or LPIPS(args.lpips_weights).to(device)

    def each(prediction: Tensor, stack: Tensor) -> Tensor:
        return torch.stack([metric(prediction[:, k], stack[:, 2 + k]) for k in range(prediction.shape[1])], 1)

    return each


def temporal(flow: DIS, prediction: Tensor, stack: Tensor) -> Tensor:
    """The warping error of the video of img0, the predictions and img1, along the flow between the true frames."""
    errors = []
    for predicted, (img0, img1, *targets) in zip(prediction, stack):
        true = torch.stack([img0, *targets, img1])
        forward, backward = flow.estimate(true[:-1], true[1:]), flow.estimate(true[1:], true[:-1])
        video = torch.cat([img0[None], predicted, img1[None]])
        errors.append(metrics.warping_error(video, forward, backward))
    return torch.stack(errors)[:, None]


# Pictures for the report


def show(contender: Contender, splits: list[Split], scores: list[Score], folder: Path) -> list[dict]:
    """Predict the two worst cases and the median of each split once more; write prediction, target and flow, as PNG."""
    shown = []
    for split in splits:
        cases = {case.name: case for case in split.cases}
        ranked = sorted(
            (score for score in scores if score.split == split.name and not score.broken),
            key=lambda score: min(score.values["psnr"]),
        )
        for place, why in {0: "worst", 1: "worst", len(ranked) // 2: "median"}.items():
            if place < len(ranked):
                score = ranked[place]
                shown.append({"split": split.name, "name": score.name, "why": why})
                shown[-1] |= _show_case(contender, split, cases[score.name], score, folder)
    return shown


def _show_case(
    contender: Contender, split: Split, case: Case, score: Score, folder: Path
) -> dict[str, str | float | None]:
    at = int(np.argmin(score.values["psnr"]))
    t = case.times[at]
    stack = read(split, case)
    if isinstance(stack, str):  # it was there while it was scored
        raise ValueError(stack)
    frames = io.to_float(stack, contender.call.device)[:, None]
    scale = contender.scale(*stack[:2])
    pictures = {"prediction": io.to_uint8(contender.predict(frames[0], frames[1], [t], scale)[0, 0])}
    pictures["target"] = stack[2 + at]
    flow = flow_to_first(contender.call, frames[0], frames[1], t, scale)
    if flow is not None:
        pictures["flow"] = io.to_uint8(flow_colours(flow, flow.norm(dim=1).max().item())[0])
    paths = {}
    for kind, picture in pictures.items():
        path = folder / "shown" / split.name / f"{case.name.replace('/', '_')}_{kind}.png"
        io.write_image(path, picture)
        paths[kind] = path.relative_to(folder.parent).as_posix()
    return {"t": t, "psnr": score.values["psnr"][at], "flow": None, **paths}


@torch.inference_mode()
def flow_to_first(
    call: Interpolator | Baseline, img0: Tensor, img1: Tensor, t: float, scale: float | None = None
) -> Tensor | None:
    """The flow t->0 that a model makes its frame with, (1, 2, H, W) in pixels; None for one without motion, and where
    flows of several scales are blended."""
    if isinstance(call, Dis):
        return -t * call.motion(img0, img1)
    if isinstance(call, Baseline):
        return None
    scale, *more = call.scales(*img0.shape[-2:], scale)
    if more:
        return None
    left, _, top, _ = amounts = call.padding.amounts(*img0.shape[-2:], scale)
    padded = [call.padding.pad(x, amounts) for x in (img0, img1)]
    too_large = call.memory(padded[0].shape, scale) > call.budget()
    model = StripIFRNet(call.model, STRIP_ROWS) if too_large else call.model
    flow = model.decode(model.encode(*padded, scale), t).flows[0][:, :2]
    return flow[..., top : top + img0.shape[-2], left : left + img0.shape[-1]]
