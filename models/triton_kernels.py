"""The kernels of kernels.py for GPUs, in Triton, and for training that of the census distance. Imported only where
there is a GPU; needs the package triton."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .kernels import Eager, empty

PIXELS = 256  # that one program works on
TILE = 4096  # values of a program of `join`: pixels times channels
FEW = 40_000  # pixels that a convolution answers with: see tiles_for


class Triton(Eager):
    """The kernels on a GPU. Convolutions of half precision are ours too: cuDNN's are slow where channels are few, and
    leave bias, sum and activation to passes over memory of their own."""

    one_pass = True

    def prepare(self, img0, img1, mean, dtype):
        (batch, _, height, width), mean = img0.shape, mean.contiguous()
        shape, layout = (2 * batch, 3, height, width), torch.channels_last
        out = torch.empty(shape, dtype=dtype, device=img0.device, memory_format=layout)
        total = batch * height * width
        with torch.cuda.device_of(out):
            _prepare[(triton.cdiv(total, PIXELS),)](
                *(img0.contiguous(), img1.contiguous(), mean, out, total, height * width),
                PIXELS=PIXELS,
            )
        return out

    def convolve(self, conv, x, add=None, into=None, tail=0):
        if not multiplies(x):
            return super().convolve(conv, x, add, into, tail)
        batch, channels, height, width = x.shape
        up, outputs = 1 + conv.transposed, conv.weight.shape[int(conv.transposed)]
        stride = 1 if conv.transposed else conv.stride
        rows, columns = triton.cdiv(height, stride), triton.cdiv(width, stride)
        total, tiles = batch * rows * columns, tiles_for(batch * rows * columns, outputs)
        if tiles not in conv.packed:
            conv.packed[tiles] = lay_out(conv.weight, conv.transposed, tiles)
        weight = conv.packed[tiles]
        shape = (batch, outputs, up * rows, up * columns)
        if into is None:
            into = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        over = empty(into, tail) if tail else into
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.cuda.device_of(x):
            _convolve[(triton.cdiv(total, tiles.pixels), weight.shape[-1] // (tiles.wide + tiles.narrow), up * up)](
                *(x, weight, conv.bias, weight if conv.slope is None else conv.slope, x if add is None else add),
                *(into[:, -outputs:], over, total, height, width, rows, columns),
                CHANNELS=channels,
                OUTPUTS=outputs,
                PITCH=into.shape[1],
                ACROSS=weight.shape[-1],
                SIDE=2 if conv.transposed else 3,
                STRIDE=stride,
                UP=up,
                PRELU=conv.slope is not None,
                ADD=add is not None,
                TAIL=tail,
                PIXELS=tiles.pixels,
                WIDE=tiles.wide,
                NARROW=tiles.narrow,
                STEP=tiles.step,
                num_warps=tiles.warps,
                num_stages=tiles.stages,
            )
        return (into, over) if tail else into

    def step(self, answer, coarse):
        batch, channels, height, width = answer.shape
        answer, flow = answer.contiguous(memory_format=torch.channels_last), empty(answer, 4, dtype=torch.float32)
        if coarse is not None:
            coarse = coarse.contiguous(memory_format=torch.channels_last)
        total = batch * height * width
        with torch.cuda.device_of(answer):
            _step[(triton.cdiv(total, PIXELS),)](
                *(answer, flow if coarse is None else coarse, flow, total, height, width),
                COARSE=coarse is not None,
                CHANNELS=channels,
                PIXELS=PIXELS,
            )
        return flow

    def join(self, answer, flow, f0, f1, width, top=0):
        batch, _, rows, columns = answer.shape
        pairs, channels, height, _ = f0.shape
        answer, flow = (x.contiguous(memory_format=torch.channels_last) for x in (answer, flow))
        out, total, lanes = empty(answer, width), batch * rows * columns, triton.next_power_of_2(channels)
        pixels = max(TILE // lanes, 1)
        with torch.cuda.device_of(answer):
            _join[(triton.cdiv(total, pixels),)](
                *(answer, flow, f0, f1, out, total, batch // pairs, rows, top, height, columns),
                ANSWER=answer.shape[1],
                CHANNELS=channels,
                WIDTH=width,
                PIXELS=pixels,
                LANES=lanes,
            )
        return out

    def blend(self, answer, coarse, img0, img1):
        (batch, _, *half), (height, width) = answer.shape, img0.shape[-2:]
        answer, coarse = (x.contiguous(memory_format=torch.channels_last) for x in (answer, coarse))
        out, total = img0.new_empty(batch, 3, height, width), batch * height * width
        img0, img1 = img0.contiguous(), img1.contiguous()
        with torch.cuda.device_of(answer):
            _blend[(triton.cdiv(total, PIXELS),)](
                *(answer, coarse, img0, img1, out, total, batch // len(img0), *half, height, width),
                height / (2 * half[0]),
                ENLARGED=(height, width) != (2 * half[0], 2 * half[1]),
                PIXELS=PIXELS,
            )
        return out


def census(x: Tensor, y: Tensor, patch: int, needed: Sequence[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of losses.terms._census_sum for float32 on a GPU, and its gradients in x and y where they are needed.

    All neighbours of a value are looked at from there: each pair twice, but nothing is written twice.
    """
    (_, channels, height, width), planar = x.shape, x.stride(1) != 1
    layout = torch.contiguous_format if planar else torch.channels_last
    x, y = (z.contiguous(memory_format=layout) for z in (x, y))
    gradients = [torch.empty_like(z) if n else None for z, n in zip((x, y), needed)]
    distance = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _census[(triton.cdiv(x.numel(), PIXELS),)](
            *(x, y, *(x if g is None else g for g in gradients), distance, x.numel(), height, width),
            *(1 if planar else channels,),
            IN_X=needed[0],
            IN_Y=needed[1],
            BORDER=patch // 2,
            VALUES=PIXELS,
        )
    return distance.sum() / 2, gradients


@triton.jit
def _census(
    x,
    y,
    in_x,
    in_y,
    distance,
    total,
    height,
    width,
    side,
    IN_X: tl.constexpr,
    IN_Y: tl.constexpr,
    BORDER: tl.constexpr,
    VALUES: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    there = i < total
    row, column = (i // side // width % height).to(tl.int32), (i // side % width).to(tl.int32)
    own = (row >= BORDER) & (row < height - BORDER) & (column >= BORDER) & (column < width - BORDER)
    here_x, here_y = tl.load(x + i, mask=there, other=0), tl.load(y + i, mask=there, other=0)
    far = tl.full([VALUES], 0, tl.float32)
    slope_x, slope_y = far, far
    for dy in tl.static_range(-BORDER, BORDER + 1):
        for dx in tl.static_range(-BORDER, BORDER + 1):
            if dy != 0 or dx != 0:
                r, c = row + dy, column + dx
                inside = there & (r >= 0) & (r < height) & (c >= 0) & (c < width)
                other = (r >= BORDER) & (r < height - BORDER) & (c >= BORDER) & (c < width - BORDER)
                counted = tl.where(inside, own.to(tl.float32) + other.to(tl.float32), 0.0)
                j = i + (dy * width + dx) * side
                v = tl.load(x + j, mask=inside, other=0) - here_x
                u = tl.load(y + j, mask=inside, other=0) - here_y
                scale_v, scale_u = tl.rsqrt(v * v + 0.81), tl.rsqrt(u * u + 0.81)
                s = v * scale_v - u * scale_u
                square = s * s
                below = 1 / (square + 0.1)
                far += square * below * counted
                common = 0.2 * 0.81 * s * below * below * counted
                if IN_X:
                    slope_x -= common * scale_v * scale_v * scale_v
                if IN_Y:
                    slope_y += common * scale_u * scale_u * scale_u
    if IN_X:
        tl.store(in_x + i, slope_x, mask=there)
    if IN_Y:
        tl.store(in_y + i, slope_y, mask=there)
    tl.store(distance + i, far, mask=there)


def multiplies(x: Tensor) -> bool:
    """Whether these kernels have a use for the tensor cores: not for float32, nor on GPUs before Ampere."""
    return x.dtype != torch.float32 and (not x.is_cuda or torch.cuda.get_device_capability(x.device) >= (8, 0))


class Tiles(NamedTuple):
    """The part of a convolution that one program computes: so many output pixels, and of their channels a power of two
    and another, or none, beside it. step: values of a pixel's surroundings that are multiplied at a time; stages: of
    these steps, how many are on their way from memory."""

    pixels: int
    wide: int
    narrow: int
    step: int
    warps: int
    stages: int


def tiles_for(pixels: int, outputs: int) -> Tiles:
    """The quickest tiles for so many output pixels and channels, as measured on an H200."""
    if pixels < FEW:  # smaller ones, that all of the GPU has something to do
        outputs = triton.cdiv(outputs, triton.cdiv(outputs, 96))
        return Tiles(64, *_two_powers(outputs), 64, 4, 4)
    wide, narrow = _two_powers(outputs)
    return Tiles(128, wide, narrow, 32, 4 if wide + narrow <= 128 else 8, 4)


def _two_powers(count: int) -> tuple[int, int]:
    """A power of two and another, or 0, that together are `count` or little more; both are 16 or more."""
    wide = max(1 << (count.bit_length() - 1), 16)
    narrow = 0 if wide >= count else max(triton.next_power_of_2(count - wide), 16)
    return (wide + narrow, 0) if wide == narrow else (wide, narrow)


def lay_out(weight: Tensor, transposed: bool, tiles: Tiles) -> Tensor:
    """The kernels of a convolution, (4 or 1, values of a pixel's surroundings, outputs), with zeros up to whole tiles.

    Of a transposed one, of side 4 and stride 2, the pixels of even and odd rows and columns are four convolutions of
    side 2: the even ones read taps 3 and 1, the odd ones 2 and 0.
    """
    if transposed:
        taps = torch.tensor([[3, 1], [2, 0]], device=weight.device)
        weight = weight[:, :, taps][..., taps].permute(2, 4, 3, 5, 0, 1).flatten(0, 1)
    else:
        weight = weight.permute(2, 3, 1, 0)[None]
    weight = weight.flatten(1, 3)
    wanted = [triton.cdiv(weight.shape[k], unit) * unit for k, unit in ((1, tiles.step), (2, tiles.wide + tiles.narrow))]
    return F.pad(weight, (0, wanted[1] - weight.shape[2], 0, wanted[0] - weight.shape[1])).contiguous()


@triton.jit(do_not_specialize=["total", "height", "width", "rows", "columns"])  # one kernel for all sizes
def _convolve(
    x,
    weight,
    bias,
    slope,
    add,
    out,
    tail,
    total,
    height,
    width,
    rows,
    columns,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PITCH: tl.constexpr,
    ACROSS: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    UP: tl.constexpr,
    PRELU: tl.constexpr,
    ADD: tl.constexpr,
    TAIL: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
    NARROW: tl.constexpr,
    STEP: tl.constexpr,
):
    """A matrix product of the pixels' surroundings, gathered on the way, and the weights; then bias, sum and PReLU.

    PITCH: channels of a pixel of `out`; ACROSS: outputs of the weights as they are laid out.
    """
    p = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    odd_y, odd_x = tl.program_id(2) // UP, tl.program_id(2) % UP
    n, r, c = p // (rows * columns), (p // columns % rows).to(tl.int32), (p % columns).to(tl.int32)
    top, left = r * STRIDE - 1 + odd_y, c * STRIDE - 1 + odd_x
    base = ((n * height + top) * width + left) * CHANNELS
    values: tl.constexpr = SIDE * SIDE * CHANNELS
    steps: tl.constexpr = (values + STEP - 1) // STEP
    first = tl.program_id(1) * (WIDE + NARROW)
    weight += tl.program_id(2) * steps * STEP * ACROSS + first
    there = p < total
    sums = tl.full([PIXELS, WIDE], 0, tl.float32)
    if NARROW > 0:
        others = tl.full([PIXELS, NARROW], 0, tl.float32)
    for step in range(steps):
        k = step * STEP + tl.arange(0, STEP)
        tap, channel = k // CHANNELS, k % CHANNELS
        dy, dx = tap // SIDE, tap % SIDE
        y, z = top[:, None] + dy[None, :], left[:, None] + dx[None, :]
        inside = there[:, None] & (k < values)[None, :] & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        around = tl.load(x + base[:, None] + ((dy * width + dx) * CHANNELS + channel)[None, :], mask=inside, other=0)
        of_k = weight + (k * ACROSS)[:, None]
        sums = tl.dot(around, tl.load(of_k + tl.arange(0, WIDE)[None, :]), sums)
        if NARROW > 0:
            others = tl.dot(around, tl.load(of_k + WIDE + tl.arange(0, NARROW)[None, :]), others)
    place = (n * rows * UP + r * UP + odd_y) * columns * UP + c * UP + odd_x
    channel = first + tl.arange(0, WIDE)
    _finish(sums, channel, place, there, bias, slope, add, out, tail, OUTPUTS, PITCH, PRELU, ADD, TAIL)
    if NARROW > 0:
        channel = first + WIDE + tl.arange(0, NARROW)
        _finish(others, channel, place, there, bias, slope, add, out, tail, OUTPUTS, PITCH, PRELU, ADD, TAIL)


@triton.jit
def _finish(
    value,
    channel,
    place,
    there,
    bias,
    slope,
    add,
    out,
    tail,
    OUTPUTS: tl.constexpr,
    PITCH: tl.constexpr,
    PRELU: tl.constexpr,
    ADD: tl.constexpr,
    TAIL: tl.constexpr,
):
    known = channel < OUTPUTS
    inside = there[:, None] & known[None, :]
    value += tl.load(bias + channel, mask=known, other=0).to(tl.float32)[None, :]
    if ADD:
        value += tl.load(add + place[:, None] * OUTPUTS + channel[None, :], mask=inside, other=0).to(tl.float32)
    if PRELU:
        value = tl.where(value > 0, value, value * tl.load(slope + channel, mask=known, other=0)[None, :])
    value = value.to(out.dtype.element_ty)
    before = OUTPUTS - TAIL
    tl.store(out + place[:, None] * PITCH + channel[None, :], value, mask=inside & (channel < before)[None, :])
    if TAIL > 0:
        over = tail + place[:, None] * TAIL + (channel - before)[None, :]
        tl.store(over, value, mask=inside & (channel >= before)[None, :])


@triton.jit
def _prepare(img0, img1, mean, out, total, size, PIXELS: tl.constexpr):
    p = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside, n = p < total, p // size
    middle = tl.load(mean + n, mask=inside, other=0)
    for k in tl.static_range(3):
        planar, place = (3 * n + k) * size + p % size, 3 * p + k
        first = tl.load(img0 + planar, mask=inside, other=0) - middle
        second = tl.load(img1 + planar, mask=inside, other=0) - middle
        tl.store(out + place, first.to(out.dtype.element_ty), mask=inside)
        tl.store(out + 3 * total + place, second.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _doubled(coarse, n, y, x, height, width, k, inside):
    """Channel k of the flow of half the size, twice as large and twice as long, at (y, x). height, width: the half."""
    odd_y, odd_x = y % 2, x % 2
    above, below = tl.maximum(y // 2 - 1 + odd_y, 0), tl.minimum(y // 2 + odd_y, height - 1)
    left, right = tl.maximum(x // 2 - 1 + odd_x, 0), tl.minimum(x // 2 + odd_x, width - 1)
    wy, wx = 0.75 - 0.5 * odd_y, 0.75 - 0.5 * odd_x
    row0, row1 = (n * height + above) * width, (n * height + below) * width
    a = tl.load(coarse + (row0 + left) * 4 + k, mask=inside, other=0)
    b = tl.load(coarse + (row0 + right) * 4 + k, mask=inside, other=0)
    c = tl.load(coarse + (row1 + left) * 4 + k, mask=inside, other=0)
    d = tl.load(coarse + (row1 + right) * 4 + k, mask=inside, other=0)
    return 2 * ((1 - wy) * ((1 - wx) * a + wx * b) + wy * ((1 - wx) * c + wx * d))


@triton.jit
def _step(
    answer, coarse, flow, total, height, width, COARSE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr
):
    p = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = p < total
    n, y, x = p // (height * width), p // width % height, p % width
    for k in tl.static_range(4):
        value = tl.load(answer + p * CHANNELS + k, mask=inside, other=0).to(tl.float32)
        if COARSE:
            value += _doubled(coarse, n, y, x, height // 2, width // 2, k, inside)
        tl.store(flow + p * 4 + k, value, mask=inside)


@triton.jit
def _corners(x, y, height, width):
    """The pixels around a place, borders clamped, and the weights of the right and of the lower ones.

    A place that is no number becomes 0: what maximum makes of it differs between versions of Triton.
    """
    x = tl.minimum(tl.where(x > 0, x, 0.0), width - 1.0)
    y = tl.minimum(tl.where(y > 0, y, 0.0), height - 1.0)
    left, top = x.to(tl.int32), y.to(tl.int32)
    right, bottom = tl.minimum(left + 1, width - 1), tl.minimum(top + 1, height - 1)
    return left, right, top, bottom, x - left, y - top


@triton.jit
def _sample(f, base, x, y, channel, height, width, CHANNELS: tl.constexpr, inside):
    left, right, top, bottom, wx, wy = _corners(x, y, height, width)
    row0, row1 = base + top * width, base + bottom * width
    c = channel[None, :]
    a = tl.load(f + ((row0 + left) * CHANNELS)[:, None] + c, mask=inside, other=0).to(tl.float32)
    b = tl.load(f + ((row0 + right) * CHANNELS)[:, None] + c, mask=inside, other=0).to(tl.float32)
    upper = (1 - wx)[:, None] * a + wx[:, None] * b
    a = tl.load(f + ((row1 + left) * CHANNELS)[:, None] + c, mask=inside, other=0).to(tl.float32)
    b = tl.load(f + ((row1 + right) * CHANNELS)[:, None] + c, mask=inside, other=0).to(tl.float32)
    lower = (1 - wx)[:, None] * a + wx[:, None] * b
    return (1 - wy)[:, None] * upper + wy[:, None] * lower


@triton.jit
def _join(
    answer,
    flow,
    f0,
    f1,
    out,
    total,
    times,
    rows,
    first,
    height,
    width,
    ANSWER: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    LANES: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, LANES)
    there = p < total
    inside = there[:, None] & (channel < CHANNELS)[None, :]
    n, y, x = p // (rows * width), first + p // width % rows, p % width
    base = n // times * height * width
    kind = out.dtype.element_ty
    to = out + (p * WIDTH)[:, None] + channel[None, :]
    feature = tl.load(answer + (p * ANSWER + 4)[:, None] + channel[None, :], mask=inside, other=0)
    tl.store(to, feature, mask=inside)
    for side in tl.static_range(2):
        dx = tl.load(flow + p * 4 + 2 * side, mask=there, other=0)
        dy = tl.load(flow + p * 4 + 2 * side + 1, mask=there, other=0)
        if side == 0:
            moved = _sample(f0, base, x + dx, y + dy, channel, height, width, CHANNELS, inside)
        else:
            moved = _sample(f1, base, x + dx, y + dy, channel, height, width, CHANNELS, inside)
        tl.store(to + (1 + side) * CHANNELS, moved.to(kind), mask=inside)
        tl.store(out + p * WIDTH + 3 * CHANNELS + 2 * side, dx.to(kind), mask=there)
        tl.store(out + p * WIDTH + 3 * CHANNELS + 2 * side + 1, dy.to(kind), mask=there)
    for k in tl.static_range(3 * CHANNELS + 4, WIDTH):
        tl.store(out + p * WIDTH + k, tl.full([PIXELS], 0, kind), mask=there)


@triton.jit
def _last(answer, coarse, n, y, x, rows, columns, inside):
    """Flow, mask and residual at pixel (y, x) of the last decoder's answer. rows, columns: of its squares of 2x2."""
    said = answer + ((n * rows + y // 2) * columns + x // 2) * 32 + y % 2 * 16 + x % 2 * 8
    dx0 = tl.load(said, mask=inside, other=0).to(tl.float32) + _doubled(coarse, n, y, x, rows, columns, 0, inside)
    dy0 = tl.load(said + 1, mask=inside, other=0).to(tl.float32) + _doubled(coarse, n, y, x, rows, columns, 1, inside)
    dx1 = tl.load(said + 2, mask=inside, other=0).to(tl.float32) + _doubled(coarse, n, y, x, rows, columns, 2, inside)
    dy1 = tl.load(said + 3, mask=inside, other=0).to(tl.float32) + _doubled(coarse, n, y, x, rows, columns, 3, inside)
    mask = 1 / (1 + tl.exp(-tl.load(said + 4, mask=inside, other=0).to(tl.float32)))
    red = tl.load(said + 5, mask=inside, other=0).to(tl.float32)
    green = tl.load(said + 6, mask=inside, other=0).to(tl.float32)
    blue = tl.load(said + 7, mask=inside, other=0).to(tl.float32)
    return dx0, dy0, dx1, dy1, mask, red, green, blue


@triton.jit
def _mix(a, b, c, d, wx, wy):
    return (1 - wy) * ((1 - wx) * a + wx * b) + wy * ((1 - wx) * c + wx * d)


@triton.jit
def _blend(
    answer,
    coarse,
    img0,
    img1,
    out,
    total,
    times,
    rows,
    columns,
    height,
    width,
    growth,
    ENLARGED: tl.constexpr,
    PIXELS: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = p < total
    size = height * width
    n, y, x = p // size, p // width % height, p % width
    if ENLARGED:
        left, right, top, bottom, wx, wy = _corners(
            (x + 0.5) / growth - 0.5, (y + 0.5) / growth - 0.5, 2 * rows, 2 * columns
        )
        a0, a1, a2, a3, a4, a5, a6, a7 = _last(answer, coarse, n, top, left, rows, columns, inside)
        b0, b1, b2, b3, b4, b5, b6, b7 = _last(answer, coarse, n, top, right, rows, columns, inside)
        c0, c1, c2, c3, c4, c5, c6, c7 = _last(answer, coarse, n, bottom, left, rows, columns, inside)
        d0, d1, d2, d3, d4, d5, d6, d7 = _last(answer, coarse, n, bottom, right, rows, columns, inside)
        dx0, dy0 = growth * _mix(a0, b0, c0, d0, wx, wy), growth * _mix(a1, b1, c1, d1, wx, wy)
        dx1, dy1 = growth * _mix(a2, b2, c2, d2, wx, wy), growth * _mix(a3, b3, c3, d3, wx, wy)
        mask, red = _mix(a4, b4, c4, d4, wx, wy), _mix(a5, b5, c5, d5, wx, wy)
        green, blue = _mix(a6, b6, c6, d6, wx, wy), _mix(a7, b7, c7, d7, wx, wy)
    else:
        dx0, dy0, dx1, dy1, mask, red, green, blue = _last(answer, coarse, n, y, x, rows, columns, inside)
    source, place = n // times * 3 * size, n * 3 * size + p % size
    for k in tl.static_range(3):
        from0 = _planar(img0 + source + k * size, x + dx0, y + dy0, height, width, inside)
        from1 = _planar(img1 + source + k * size, x + dx1, y + dy1, height, width, inside)
        residual = red if k == 0 else (green if k == 1 else blue)
        value = mask * from0 + (1 - mask) * from1 + residual
        tl.store(out + place + k * size, tl.minimum(tl.maximum(value, 0.0), 1.0), mask=inside)


@triton.jit
def _planar(img, x, y, height, width, inside):
    left, right, top, bottom, wx, wy = _corners(x, y, height, width)
    a = tl.load(img + top * width + left, mask=inside, other=0)
    b = tl.load(img + top * width + right, mask=inside, other=0)
    c = tl.load(img + bottom * width + left, mask=inside, other=0)
    d = tl.load(img + bottom * width + right, mask=inside, other=0)
    return _mix(a, b, c, d, wx, wy)
