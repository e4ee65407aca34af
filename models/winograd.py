"""3x3 convolutions with fewer multiplications, on CPUs: a quarter of the definition's in float32, 4/9 in bfloat16.

    convolution = Winograd(module.weight, module.bias, slope, dtype)
    y = convolution(library, x)

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), after Winograd's minimal filtering:
each tile x of the input gives y = A'((G w G') * (B' x B))A, with B' and A' as sums in winograd.c and G w G' computed
ahead of time. F(4x4, 3x3) in float32 has about four times the rounding error of oneDNN's sums of products, which frames
do not show; in bfloat16 it would have ten times, so F(2x2, 3x3) is used there, with twice.

It pays where the time goes into multiplications: not in bfloat16 on CPUs with AMX, where those are much faster.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .native import Library

G = {  # an input tile has as many rows as G, an output tile two fewer
    torch.bfloat16: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    torch.float32: (
        *((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6)),
        *((1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
    ),
}
UNIT, BLOCK, TILES = 16, 48, 24  # as in winograd.c


def pays(library: Library, dtype: torch.dtype) -> bool:
    """Whether a library has the convolutions, and the CPU has nothing faster."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return library.has("winograd") and not (dtype == torch.bfloat16 and amx())


def as_convolution(up: nn.ConvTranspose2d) -> nn.Conv2d:
    """A transposed 4x4 convolution of stride 2 as a 3x3 one with four times the outputs, to be shuffled afterwards.

    Along each axis, even output pixels read the kernel's taps 3 and 1, at the input pixel before and at the same; odd
    ones read taps 2 and 0, at the same and at the next.
    """
    inputs, outputs = up.weight.shape[:2]
    conv = nn.Conv2d(inputs, 4 * outputs, 3, padding=1, device="meta", dtype=up.weight.dtype)
    conv = conv.to_empty(device=up.weight.device)  # draws no random numbers
    weight = torch.zeros_like(conv.weight).view(2, 2, outputs, inputs, 3, 3)
    taps = {0: ((0, 3), (1, 1)), 1: ((1, 2), (2, 0))}  # even 0, odd 1: (tap of the new kernel, tap of the old)
    for odd_y, odd_x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for y, old_y in taps[odd_y]:
            for x, old_x in taps[odd_x]:
                weight[odd_y, odd_x, :, :, y, x] = up.weight.detach()[:, :, old_y, old_x].T
    conv.weight.data, conv.bias.data = weight.flatten(0, 2), up.bias.detach().repeat(4)
    return conv


def serves(conv: nn.Conv2d | nn.ConvTranspose2d, channels: int) -> bool:
    """Whether a convolution can be computed this way. channels: of its input, as laid out."""
    shape = (*conv.kernel_size, *conv.stride, *conv.padding)
    shapes = {(4, 4, 2, 2, 1, 1)} if isinstance(conv, nn.ConvTranspose2d) else {(3, 3, 1, 1, 1, 1)}
    return shape in shapes and channels >= UNIT and channels % 2 == 0


class Winograd:
    """One convolution, transposed or not, and the PReLU after it.

    weight, bias: those of the convolution, (outputs, inputs, 3, 3) and (outputs,); of a transposed one those
    of `as_convolution`, with phases=4. slope: of PReLU, one per output, or None for no activation. dtype: of the
    tensors that it is called with, float32 or bfloat16.
    """

    def __init__(self, weight: Tensor, bias: Tensor, slope: Tensor | None, dtype: torch.dtype, phases: int = 1):
        self.phases, self.outputs = phases, len(weight) // phases
        padding = -self.outputs % UNIT
        one, side = torch.tensor(G[dtype], dtype=torch.float32, device=weight.device), len(G[dtype])
        taps, self.places = weight.float().permute(2, 3, 1, 0).flatten(0, 1), side**2
        tiles = (torch.kron(one, one) @ taps.flatten(1)).to(dtype).unflatten(1, taps.shape[1:])
        blocks = []
        for phase, part in enumerate(tiles.chunk(phases, -1)):
            kept = [k for k in range(self.places) if phases == 1 or not zero(phase, k, side)]
            for block in F.pad(part[kept], (0, padding)).split(BLOCK, -1):
                if dtype != torch.float32:  # one instruction reads two inputs for each output
                    block = block.unflatten(1, (-1, 2)).transpose(2, 3)
                blocks.append(block.flatten())
        self.weight = torch.cat(blocks)
        self.bias = F.pad(bias[: self.outputs].float(), (0, padding))
        self.slope = torch.ones_like(self.bias) if slope is None else F.pad(slope.float(), (0, padding))

    def __call__(
        self,
        library: Library,
        x: Tensor,
        add: Tensor | None = None,
        into: Tensor | None = None,
        tail: int = 0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """PReLU of the convolution of x (+ add), see fast.Conv. library: that of the weights' type. into: may have more
        channels than the result, which is written to the last ones."""
        (batch, channels, height, width), growth = x.shape, 2 if self.phases > 1 else 1
        x, size = x.contiguous(memory_format=torch.channels_last), (growth * height, growth * width)
        empty = partial(torch.empty, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        out = empty((batch, self.outputs, *size)) if into is None else into
        side = empty((batch, tail, *size)) if tail else None
        threads = torch.get_num_threads()
        spaces = x.new_empty(threads * self.places * TILES * channels)
        products = x.new_empty(threads * self.places * TILES * BLOCK, dtype=torch.float32)
        first, stride = out[:, -self.outputs :], out.shape[1]
        given = (x, self.weight, self.bias, self.slope, add, first, stride, side, tail, spaces, products)
        library.call("winograd", *given, batch, height, width, channels, self.outputs, growth - 1)
        return (out, side) if tail else out


def zero(phase: int, place: int, side: int) -> bool:
    """Whether a place of a tile's weights is zero in a phase of `as_convolution`: only 2x2 of 3x3 taps are not."""
    zeros = [(side - 1) * (1 - odd) for odd in divmod(phase, 2)]
    return any(line == none for line, none in zip(divmod(place, side), zeros))
