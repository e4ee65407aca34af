"""What cameras, editors and encoders do to frames: drift of light, sensor noise, static overlays, compression.

They are applied to finished samples, procedural or footage, in this order, each to a random share of the samples.
Motion and therefore flow do not change, except for an overlay, which stands still: its flow is zero.

The middle frame is the target, so a network learns to produce what it shows. It has the drift of its own time, the
overlay and the compression, which follow from what the outer frames show; a restored frame between two compressed ones
would flicker. It has no noise: noise that is independent of both inputs cannot be predicted, and the best prediction
of a noisy target is its mean, the clean frame.

Frames are (n, 3, 3, H, W) in [0, 1], in the order of time: t = 0, t, 1; then channels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Sample
from .scenes import pixels, read, stencil_chart
from .stencils import INNER, OUTLINE, STEPS, Stencils
from .synthetic import to_device

# The share of the samples that has each, at strength 1; BLUR is for synthetic.Synthetic.
BLUR, DRIFT, NOISE, OVERLAY, COMPRESSION = 0.08, 0.2, 0.25, 0.15, 0.2
LETTERBOX = 0.25  # share of the overlays that are black bars; the others are text and logos
QUALITY = 25, 90  # of the compression, as JPEG counts it
BLOCK = 8
# Steps of brightness and of colour at quality 50: ITU-T T.81 (JPEG), tables K.1 and K.2
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip
YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # ITU-R BT.601, full range


class Effects:
    """Applies the effects to batches of Samples: `effects(sample)`.

    strength: a factor on the shares above; 0 leaves samples as they are. stencils: the shapes of overlays, on the
    samples' device. random: a generator on the CPU; its seed determines what happens, whatever the device.
    """

    def __init__(self, strength: float, stencils: Stencils, random: torch.Generator):
        self.strength, self.random = strength, random
        self.marks = stencils.distance[stencils.numbers("text", "glyph", "ring", "polygon")]

    def __call__(self, sample: Sample) -> Sample:
        """sample: a batch with one target each."""
        if not self.strength:
            return sample
        times = torch.stack([torch.zeros_like(sample.t), sample.t, torch.ones_like(sample.t)], 1)
        frames, flow = torch.stack([sample.img0, sample.imgt, sample.img1], 1), sample.flow
        if len(which := self._some(DRIFT, frames)):
            gain, gamma = (self._normal(0.15, which) for _ in range(2))
            frames[which] = drift(frames[which], times[which], gain, gamma)
        if len(which := self._some(NOISE, frames)):
            deviation = torch.exp(self._uniform(math.log(0.5), math.log(8), which)) / 255
            random = torch.Generator(frames.device).manual_seed(int(torch.randint(2**62, (), generator=self.random)))
            outer = which[:, None], constant([0, 2], which.device)
            frames[outer] = noise(frames[outer], deviation, random)
        if len(which := self._some(OVERLAY, frames)):
            marks = self._marks(which, *frames.shape[-2:])
            flow = flow.clone()
            frames[which], flow[which] = overlay(frames[which], flow[which], *marks)
        if len(which := self._some(COMPRESSION, frames)):
            corner = torch.randint(2 * BLOCK, (2,), generator=self.random).tolist()
            frames[which] = compress(frames[which], self._uniform(*QUALITY, which), corner)
        return Sample(*frames.unbind(1), sample.t, flow)

    def _some(self, share: float, frames: Tensor) -> Tensor:
        """The numbers of the samples that get an effect."""
        chosen = torch.rand(len(frames), generator=self.random) < share * self.strength
        return to_device(chosen.nonzero()[:, 0], frames.device)

    def _uniform(self, low: float, high: float, which: Tensor, *shape: int) -> Tensor:
        return to_device(low + (high - low) * torch.rand(len(which), *shape, generator=self.random), which.device)

    def _normal(self, deviation: float, which: Tensor) -> Tensor:
        return to_device(deviation * torch.randn(len(which), generator=self.random), which.device)

    def _marks(self, which: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Text, logos and letterboxes: distance, fill, rim and opacity as `overlay` takes them."""
        n, short, p = len(which), min(height, width), pixels((height, width), which.device)
        extent = constant([width, height], which.device)
        number = torch.randint(len(self.marks), (n,), generator=self.random)
        stencil = self.marks[to_device(number, which.device)][:, None].float()
        radius = short * 0.08 * 4 ** self._uniform(0, 1, which)
        centre = self._uniform(-0.5, 0.5, which, 2) * extent
        place = stencil_chart(centre, 0 * radius, radius[:, None].expand(-1, 2))
        distance = (read(stencil, place, p.expand(n, 1, -1, -1), "border")[:, 0, 0] - OUTLINE) / STEPS
        distance = distance * (radius / (INNER * stencil.shape[-1]))[:, None]
        # Bars are at both ends of x or of y.
        across = torch.where(self._uniform(0, 1, which)[:, None] < 0.8, p[1] / height, p[0] / width)
        bars = (across.abs() - 0.5 + self._uniform(0.03, 0.2, which)[:, None]) * short
        boxed = self._uniform(0, 1, which) < LETTERBOX
        white, grey = (self._uniform(0, 1, which) < 0.5).float(), self._uniform(0, 1, which, 3)
        fill = torch.lerp(grey, torch.ones_like(grey), white[:, None]) * ~boxed[:, None]
        rim = self._uniform(-2, 2, which).clamp(min=0) * ~boxed
        opacity = torch.where(boxed, 1, self._uniform(0.4, 2, which).clamp(max=1))
        return torch.where(boxed[:, None], bars, distance).unflatten(-1, (height, width)), fill, rim, opacity


def drift(frames: Tensor, times: Tensor, gain: Tensor, gamma: Tensor) -> Tensor:
    """Light that changes evenly: x^exp(gamma (t - 1/2)) exp(gain (t - 1/2)). times: (n, 3); gain, gamma: (n,)."""
    power, factor = (torch.exp(rate[:, None] * (times - 0.5))[..., None, None, None] for rate in (gamma, gain))
    return (frames**power * factor).clamp(0, 1)


def noise(frames: Tensor, deviation: Tensor, random: torch.Generator) -> Tensor:
    """Sensor noise, half of its variance (the photon noise) in proportion to the brightness.

    deviation: (n,), at a brightness of one half. random: on the frames' device.
    """
    grain = torch.randn(frames.shape, generator=random, device=frames.device)
    return (frames + grain * (0.5 + frames).sqrt() * deviation.view(-1, 1, 1, 1, 1)).clamp(0, 1)


def overlay(
    frames: Tensor, flow: Tensor, distance: Tensor, fill: Tensor, rim: Tensor, opacity: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a mark at rest over all frames; flow (n, 4, H, W) becomes zero where it hides more than half.

    distance: (n, H, W), to the mark's outline, positive inside, pixels. fill: (n, 3), its colour. rim: (n,), width of
    a black edge, pixels. opacity: (n,).
    """
    ink = (distance + 0.5).clamp(0, 1)[:, None] * fill[..., None, None]
    alpha = (distance + rim[:, None, None] + 0.5).clamp(0, 1) * opacity[:, None, None]
    flow = torch.where(alpha[:, None] > 0.5, 0, flow)
    return torch.lerp(frames, ink[:, None], alpha[:, None, None]), flow


def compress(frames: Tensor, quality: Tensor, corner: tuple[int, int]) -> Tensor:
    """What JPEG with subsampled chroma (4:2:0) leaves of the frames, each frame alone.

    quality: (n,), 1 to 100. corner: where in a macroblock of 16x16 the frames begin, (y, x).
    """
    height, width = frames.shape[-2:]
    top, left = corner
    images = frames.flatten(0, 1)
    below, beside = -(top + height) % (2 * BLOCK), -(left + width) % (2 * BLOCK)
    images = F.pad(images, (left, beside, top, below), mode="replicate")
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).repeat_interleave(frames.shape[1])
    to_ycc = torch.tensor(YCC)
    to_rgb = torch.linalg.inv(to_ycc)
    ycc = torch.einsum("ij,njyx->niyx", to_device(to_ycc, frames.device), images)
    luma = quantise(ycc[:, :1] - 0.5, LUMA, scale) + 0.5
    chroma = F.interpolate(quantise(F.avg_pool2d(ycc[:, 1:], 2), CHROMA, scale), scale_factor=2, mode="bilinear")
    images = torch.einsum("ij,njyx->niyx", to_device(to_rgb, frames.device), torch.cat([luma, chroma], 1))
    return images[..., top : top + height, left : left + width].clamp(0, 1).view_as(frames)


def constant(values: Sequence, device: torch.device) -> Tensor:
    """Numbers on a device, for which the CPU does not wait, as it would in torch.tensor(values, device=device)."""
    return to_device(torch.tensor(values), device)


def quantise(planes: Tensor, table: tuple, scale: Tensor) -> Tensor:
    """Planes (m, C, h, w), sides multiples of 8, around 0, with their cosine transform rounded to the steps of `table`
    in 1/255, times scale (m,) percent."""
    dct = transform(planes.device)
    steps = constant(table, planes.device) * scale[:, None, None]
    steps = ((steps + 50) / 100).floor().clamp(1, 255)[:, None, None, :, None] / 255
    blocks = planes.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))  # (m, C, h / 8, 8, w / 8, 8)
    waves = torch.einsum("ij,mcyjxk,lk->mcyixl", dct, blocks, dct)
    waves = (waves / steps).round() * steps
    return torch.einsum("ji,mcyjxk,kl->mcyixl", dct, waves, dct).flatten(4).flatten(2, 3)


def transform(device: torch.device) -> Tensor:
    """The orthonormal cosine transform of BLOCK values, (BLOCK, BLOCK): wave by place."""
    k = torch.arange(BLOCK, device=device)
    waves = torch.cos(math.pi / BLOCK * k[:, None] * (k + 0.5)) * math.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    return waves
