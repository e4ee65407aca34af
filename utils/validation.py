"""A network's score on frames that it was not trained on, by all ranks together."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, Dataset

from utils import distributed
from utils.batches import load
from utils.metrics import psnr


class Validation:
    """network -> {"psnr": mean over all frames of a data set, in dB}, every sample on exactly one rank.

    dataset: of datasets.Sample, unaugmented; samples may have different sizes, so they are scored one by one.
    """

    def __init__(self, dataset: Dataset, device: torch.device, workers: int = 0):
        if not len(dataset):
            raise ValueError("there is nothing to validate on: the list of the validation is empty")
        self.dataset, self.device, self.workers = dataset, device, workers

    def __call__(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        return self._score(lambda img0, img1, t: model(img0, img1, t).imgt)

    def averaging(self) -> dict[str, float]:
        """What the plain average of both frames scores: a network below it has learnt nothing yet."""
        return self._score(lambda img0, img1, t: ((img0 + img1) / 2).expand(len(t), -1, -1, -1))

    @torch.inference_mode()
    def _score(self, predict: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[str, float]:
        total = {"psnr": 0.0, "frames": 0}
        one_by_one = BatchSampler(distributed.shard(range(len(self.dataset))), batch_size=1, drop_last=False)
        for batch in load(self.dataset, one_by_one, self.workers, pin=self.device.type == "cuda"):
            img0, img1, t = (x.to(self.device, non_blocking=True) for x in (batch.img0, batch.img1, batch.t.flatten()))
            imgt = batch.imgt.flatten(0, -4).to(self.device, non_blocking=True)
            scores = psnr(predict(img0, img1, t), imgt)
            total["psnr"] = total["psnr"] + scores.sum()
            total["frames"] += len(scores)
        total = distributed.sums({name: float(value) for name, value in total.items()})
        return {"psnr": total["psnr"] / total["frames"]}
