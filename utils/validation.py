"""A network's score on frames that it was not trained on, by all ranks together, and pictures of its results."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from utils import distributed
from utils.batches import load
from utils.flow_check import flow_colours
from utils.io import to_uint8
from utils.metrics import bounded_psnr


class Validation:
    """network -> {"psnr": mean over all frames of a data set, in dB, "averaging": the score of the average of both
    frames, weighted by nearness in time, the floor to read a curve against}; every sample on exactly one rank.

    dataset: of datasets.Sample, unaugmented; samples may have different sizes, so they are scored one by one.
    """

    def __init__(self, dataset: Dataset, device: torch.device, workers: int = 0):
        if not len(dataset):
            raise ValueError("nothing to validate on: the validation list is empty")
        self.dataset, self.device, self.workers = dataset, device, workers

    def __call__(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        return {"psnr": self._score(lambda img0, img1, t: model(img0, img1, t).imgt), "averaging": self.averaging}

    @cached_property
    def averaging(self) -> float:
        """What the average of both frames scores: a network below it has learnt nothing yet."""
        return self._score(lambda img0, img1, t: torch.lerp(img0, img1, t.view(-1, 1, 1, 1)))

    @torch.inference_mode()
    def pictures(self, model: nn.Module, count: int = 4) -> dict[str, np.ndarray]:
        """What the network makes of `count` samples spread over the set: RGB uint8 (H, W, 3) by name.

        From left to right: both frames overlaid, the prediction, the truth, the error four times enlarged, the flow to
        either frame if the network has any. Of several targets the middle one.
        """
        model.eval()
        result = {}
        for index in sorted({k * len(self.dataset) // count for k in range(count)}):
            sample = self.dataset[index]
            middle = sample.t.numel() // 2
            img0, img1 = (x[None].to(self.device) for x in (sample.img0, sample.img1))
            imgt = (sample.imgt if sample.imgt.ndim == 3 else sample.imgt[middle])[None].to(self.device)
            out = model(img0, img1, sample.t.flatten()[middle].to(self.device))
            flows = [flow for finest in out.flows[:1] for flow in finest.split(2, 1)]
            most = max((flow.norm(dim=1).max().item() for flow in flows), default=0)
            error = ((out.imgt - imgt).abs() * 4).clamp(max=1)
            strip = [(img0 + img1) / 2, out.imgt, imgt, error, *(flow_colours(flow, most) for flow in flows)]
            result[f"validation/{index}"] = to_uint8(torch.cat(strip, 3)[0])
        return result

    @torch.inference_mode()
    def _score(self, predict: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
        total = {"psnr": 0.0, "frames": 0}
        one_by_one = [[index] for index in distributed.shard(range(len(self.dataset)))]
        for batch in load(self.dataset, one_by_one, self.workers, pin=self.device.type == "cuda"):
            img0, img1, t = (x.to(self.device, non_blocking=True) for x in (batch.img0, batch.img1, batch.t.flatten()))
            imgt = batch.imgt.flatten(0, -4).to(self.device, non_blocking=True)
            scores = bounded_psnr(predict(img0, img1, t), imgt)
            total["psnr"] = total["psnr"] + scores.sum()
            total["frames"] += len(scores)
        total = distributed.sums({name: float(value) for name, value in total.items()})
        return total["psnr"] / total["frames"]
