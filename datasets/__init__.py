"""What a data set gives for one index: a Sample; the default collate of a DataLoader makes batches of them.

In training the index is (i, epoch), so that augmentation may differ from epoch to epoch; in validation it is i.
"""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Sample"]


class Sample(NamedTuple):
    """Frames around a moment in time.

    img0, img1: (3, H, W) float in [0, 1], the frames at t = 0 and t = 1. imgt: (3, H, W), the true frame at t; where a
    window has several targets, (N, 3, H, W). t: float, () or (N,). flow: (4, H, W), t->0 and t->1, dx, dy, in
    pixels; NaN everywhere where there is no teacher flow, so that samples with and without flow make one batch.
    """

    img0: Tensor
    imgt: Tensor
    img1: Tensor
    t: Tensor
    flow: Tensor
