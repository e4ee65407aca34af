"""What the tests of the training loop and of its step are made of: a small network, its batches and its loss."""

import itertools

import torch

import models
from datasets import Sample
from losses import ifrnet_loss

CPU = torch.device("cpu")


def loss(out, batch, progress):
    return ifrnet_loss(out, batch.imgt, batch.flow)


def sample_batch(iteration, size=2, targets=None):
    """Smooth random pictures that depend on the iteration alone."""
    rng = torch.Generator().manual_seed(iteration)
    coarse = torch.rand(size, 9, 4, 4, generator=rng)
    img0, imgt, img1 = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1).chunk(3, 1)
    flow, t = torch.full((size, 4, 32, 32), torch.nan), torch.full((size,), 0.5)
    if targets:
        imgt, t = imgt[:, None].repeat(1, targets, 1, 1, 1), torch.linspace(0.2, 0.8, targets).repeat(size, 1)
    return Sample(img0, imgt, img1, t, flow)


def endless(start, **kwargs):
    return (sample_batch(iteration, **kwargs) for iteration in itertools.count(start))


def network(seed=0):
    torch.manual_seed(seed)
    return models.build("IFRNet_XS")


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
