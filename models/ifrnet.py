"""IFRNet: intermediate feature refine network for efficient frame interpolation (CVPR 2022, arXiv 2205.14620).

One encoder makes a pyramid of four levels from each frame. Four decoders, coarse to fine, refine together the flow
from the frame at t to both inputs and the feature at t; the last one adds a blending mask and a residual.
Frames are RGB in [0, 1], (B, 3, H, W); flow is in pixels of its own level.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers import ResBlock, conv, resize, warp

LEVELS = 4
DIVISOR = 2**LEVELS  # every level halves the frame once


class Variant(NamedTuple):
    """widths: channels of the encoder's levels; stem: kernel of the first convolution, odd; side: see ResBlock."""

    widths: tuple[int, int, int, int]
    stem: int
    side: int


VARIANTS = {
    "IFRNet_S": Variant((24, 36, 54, 72), stem=3, side=24),
    "IFRNet": Variant((32, 48, 72, 96), stem=3, side=32),
    "IFRNet_L": Variant((64, 96, 144, 192), stem=7, side=64),
}


class Interpolation(NamedTuple):
    """What the network predicts for the frame at t.

    imgt: the frame, (B, 3, H, W) in [0, 1].
    flows: fine to coarse, (B, 4, h, w): t->0 dx, dy, t->1 dx, dy in pixels of that level; the first is of full size.
    features: the decoder's features at t, levels 1, 2, 3.
    targets: encoder(imgt), levels 1, 2, 3, where the true frame was given (training); otherwise None.
    """

    imgt: Tensor
    flows: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    targets: tuple[Tensor, ...] | None


class Pair(NamedTuple):
    """Two frames, encoded: all that the decoder needs, whatever the times asked for.

    img0, img1: (B, 3, H, W) minus mean, (B, 1, 1, 1). pyramid0, pyramid1: their features of levels 1 to 4,
    (B, C, s * H / 2^level, s * W / 2^level), where s is the scale.
    """

    img0: Tensor
    img1: Tensor
    mean: Tensor
    pyramid0: tuple[Tensor, ...]
    pyramid1: tuple[Tensor, ...]
    scale: float


def check_frames(img0: Tensor, img1: Tensor, scale: float) -> None:
    """ValueError where two batches of frames cannot go through the network: see IFRNet.encode."""
    if img0.shape != img1.shape:
        raise ValueError(f"the two frames have different sizes: {tuple(img0.shape)} and {tuple(img1.shape)}")
    if img0.ndim != 4 or img0.shape[1] != 3 or not len(img0):
        raise ValueError(f"frames of shape {tuple(img0.shape)}; RGB is needed, (B, 3, H, W)")
    for side in img0.shape[-2:]:
        # Integer arithmetic at scale 1, which torch.export can reason about.
        levels = side * scale / DIVISOR if scale != 1 else 0
        if abs(levels - round(levels)) > 1e-6 or (scale == 1 and side % DIVISOR):
            height, width = img0.shape[-2:]
            raise ValueError(
                f"a frame of {width}x{height} at scale {float(scale):g}: width and height times scale must be "
                f"multiples of {DIVISOR}; models.Interpolator pads frames of any size"
            )


def common_mean(img0: Tensor, img1: Tensor) -> Tensor:
    """The mean over both frames, all channels and pixels, (B, 1, 1, 1)."""
    return (img0.mean((1, 2, 3), keepdim=True) + img1.mean((1, 2, 3), keepdim=True)) / 2


def times_of(pair: Pair, t: Tensor | float) -> tuple[Tensor, int]:
    """t as (1 or N * B, 1, 1, 1) on the pair's device, and N, the number of times for each of the B pairs."""
    pairs = len(pair.img0)
    # A tuple: torch.compile of PyTorch 2.6 cannot trace `int | float`. full(): copying a number would block the CPU.
    if isinstance(t, (int, float)):
        t = torch.full((1,), t, dtype=torch.float32, device=pair.img0.device)
    t = torch.as_tensor(t, dtype=torch.float32, device=pair.img0.device).reshape(-1, 1, 1, 1)
    if not len(t) or (len(t) % pairs and len(t) != 1):
        raise ValueError(f"{len(t)} times for {pairs} pairs: give one, or the same number for every pair")
    return t, max(len(t) // pairs, 1)


class Encoder(nn.Module):
    """Frame -> features of levels 1..4, each half the size of the one before."""

    def __init__(self, variant: Variant, act: str):
        super().__init__()
        inputs, kernel = 3, variant.stem
        for level, width in enumerate(variant.widths, start=1):
            stage = nn.Sequential(conv(inputs, width, kernel, stride=2, act=act), conv(width, width, act=act))
            self.add_module(f"pyramid{level}", stage)
            inputs, kernel = width, 3

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        features = []
        for stage in self.children():
            img = stage(img)
            features.append(img)
        return tuple(features)


class Decoder(nn.Module):
    """One level of refinement: takes what is known at this level and predicts at twice its size."""

    def __init__(self, inputs: int, width: int, outputs: int, side: int, act: str):
        super().__init__()
        self.convblock = nn.Sequential(
            conv(inputs, width, act=act),
            ResBlock(width, side, act),
            nn.ConvTranspose2d(width, outputs, 4, 2, 1),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.convblock(torch.cat(inputs, 1))


class IFRNet(nn.Module):
    """The network. `act` is "prelu" (the paper's), "gelu" or "gelu+bn"."""

    def __init__(self, variant: Variant, act: str = "prelu"):
        super().__init__()
        self.variant, self.act = variant, act
        self.encoder = Encoder(variant, act)
        below = (4, *variant.widths)  # besides the flow, the last decoder's output has 4 channels: mask and residual
        for level in range(LEVELS, 0, -1):
            c = below[level]
            inputs, width = (2 * c + 1, 2 * c) if level == LEVELS else (3 * c + 4, 3 * c)
            self.add_module(f"decoder{level}", Decoder(inputs, width, 4 + below[level - 1], variant.side, act))

    @property
    def name(self) -> str:
        """Its name in VARIANTS."""
        return next((name for name, variant in VARIANTS.items() if variant == self.variant), "network of its own")

    @property
    def any_time(self) -> bool:
        """Whether the weights read t. Training at t = 0.5 alone leaves those of the t plane, the last input of
        decoder4, at zero: the result is then the frame at 0.5 for any t."""
        return bool(self.decoder4.convblock[0][0].weight[:, -1].any())

    def encode(self, img0: Tensor, img1: Tensor, scale: float = 1.0) -> Pair:
        """Both frames' features, made once for all times.

        img0, img1: (B, 3, H, W) in [0, 1]; scale: the size at which flow is estimated, relative to the frames.
        ValueError for other shapes, where the sizes differ, or scale * H or scale * W is not a multiple of 16.
        """
        check_frames(img0, img1, scale)
        mean = common_mean(img0, img1)
        img0, img1 = img0 - mean, img1 - mean
        frames = torch.cat([img0, img1])
        if scale != 1:
            frames = resize(frames, size=tuple(round(side * scale) for side in frames.shape[-2:]))
        both = self.encoder(frames)
        pyramid0, pyramid1 = zip(*(level.chunk(2) for level in both))
        return Pair(img0, img1, mean, pyramid0, pyramid1, scale)

    def decode(self, pair: Pair, t: Tensor | float) -> Interpolation:
        """The frame at t from an encoded pair. t: as in `forward`. `targets` is None."""
        t, times = times_of(pair, t)

        def each(x: Tensor) -> Tensor:
            return x if times == 1 else x.repeat_interleave(times, 0)

        top = pair.pyramid0[-1]
        plane = t.to(top.dtype).expand(len(top) * times, 1, *top.shape[-2:])
        feature, flow, flows, features = None, None, [], []
        for level in range(LEVELS, 0, -1):
            f0, f1 = each(pair.pyramid0[level - 1]), each(pair.pyramid1[level - 1])
            if flow is None:
                answer = self.decoder4(f0, f1, plane)
            else:
                answer = self.refine(level, feature, flow, f0, f1)
            # Flow stays in float32 from here on: it becomes coordinates.
            step = answer[:, :4].float()
            flow = step if flow is None else step + 2 * resize(flow, 2.0)
            flows.insert(0, flow)
            feature = answer[:, 4:]
            features.insert(0, feature)

        mask, residual = torch.sigmoid(answer[:, 4:5].float()), answer[:, 5:].float()
        if pair.scale != 1:
            size = pair.img0.shape[-2:]
            flow = resize(flow, size=size) / pair.scale
            mask, residual = resize(mask, size=size), resize(residual, size=size)
            flows[0] = flow
        imgt = self.blend(flow, mask, residual + each(pair.mean), each(pair.img0), each(pair.img1))
        return Interpolation(imgt, tuple(flows), tuple(features[1:]), None)

    def refine(self, level: int, feature: Tensor, flow: Tensor, f0: Tensor, f1: Tensor, top: int = 0) -> Tensor:
        """The output of the decoder of a level from 1 to 3, at twice the size: what to add to the flow, then the
        feature (at level 1, mask and residual).

        feature, f0, f1: (B, C, h, w); flow: (B, 4, h, w) in pixels of the level. feature and flow may be a strip of
        rows that starts at `top`.
        """
        decoder = getattr(self, f"decoder{level}")
        return decoder(feature, warp(f0, flow[:, :2], top), warp(f1, flow[:, 2:], top), flow.to(f0.dtype))

    def blend(self, flow: Tensor, mask: Tensor, rest: Tensor, img0: Tensor, img1: Tensor, top: int = 0) -> Tensor:
        """The frame, (B, 3, H, W) in [0, 1]: both frames warped along the flow and mixed, plus the rest.

        flow: (B, 4, H, W) in pixels; mask: (B, 1, H, W) in [0, 1], the share of img0; rest: residual and mean,
        (B, 3, H, W). These may be a strip of rows that starts at `top`.
        """
        frame = mask * warp(img0, flow[:, :2], top) + (1 - mask) * warp(img1, flow[:, 2:], top)
        return (frame + rest).clamp(0, 1)

    def forward(
        self, img0: Tensor, img1: Tensor, t: Tensor | float, imgt: Tensor | None = None, scale: float = 1.0
    ) -> Interpolation:
        """The frame at t between img0 (t = 0) and img1 (t = 1).

        img0, img1: (B, 3, H, W) in [0, 1]. t: one number, B numbers, or N * B numbers: N for every pair, pair by pair;
        the result then holds N * B frames, and the pairs are encoded once. imgt: the true frames, in the result's
        shape; they give `targets`, in the size of `features`. scale: see `encode`. With weights that ignore t (see
        `any_time`) any t is accepted here; Interpolator refuses all but 0.5. ValueError as from `encode`, for any
        other number of times, and for true frames of another shape.
        """
        pair = self.encode(img0, img1, scale)
        out = self.decode(pair, t)
        if imgt is None:
            return out
        if imgt.shape != out.imgt.shape:
            shapes = f"{tuple(imgt.shape)} for {tuple(out.imgt.shape)}"
            raise ValueError(f"true frames of shape {shapes}: give one for every frame of the result")
        mean = pair.mean.repeat_interleave(len(imgt) // len(img0), 0)
        truth = imgt - mean
        if scale != 1:
            truth = resize(truth, size=tuple(round(side * scale) for side in truth.shape[-2:]))
        # Not _replace: torch.compile of PyTorch 2.6 breaks the graph there.
        return Interpolation(out.imgt, out.flows, out.features, self.encoder(truth)[:3])
