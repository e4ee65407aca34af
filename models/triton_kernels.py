"""The kernels of kernels.py for GPUs, in Triton, and the census distance for training. Imported only where there is a
GPU; needs the package triton."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cuda_convolution
from .kernels import Eager, empty

VALUES, PIXELS = 1024, 256  # per program, in kernels that go by values and by pixels
TILE = 4096  # values of a program of `join`: pixels times channels


class Triton(Eager):
    """The kernels on a GPU."""

    one_pass = True

    def convolves(self, conv, x):
        return cuda_convolution.serves(conv, x)

    def convolve(self, conv, x, add=None, into=None, tail=0):
        return cuda_convolution.convolve(conv, x, add, into, tail)

    def prepare(self, img0, img1, mean, dtype, channels=3):
        (batch, _, height, width), mean = img0.shape, mean.contiguous()
        shape, layout = (2 * batch, channels, height, width), torch.channels_last
        out = torch.empty(shape, dtype=dtype, device=img0.device, memory_format=layout)
        total = batch * height * width
        with torch.cuda.device_of(out):
            _prepare[(triton.cdiv(total, PIXELS),)](
                *(img0.contiguous(), img1.contiguous(), mean, out, total, height * width),
                CHANNELS=channels,
                LANES=triton.next_power_of_2(channels),
                PIXELS=PIXELS,
            )
        return out

    def prelu(self, x, slope, bias=None, add=None, into=None, tail=0):
        out = x if into is None else into
        side = empty(x, tail) if tail else x
        channels = x.shape[1]
        with torch.cuda.device_of(x):
            _prelu[(triton.cdiv(x.numel(), VALUES),)](
                *(x, x if add is None else add, slope, slope if bias is None else bias),
                *(out[:, -channels:], side, x.numel(), out.shape[1]),
                ADD=add is not None,
                BIAS=bias is not None,
                CHANNELS=channels,
                TAIL=tail,
                VALUES=VALUES,
            )
        return side if tail else out

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

    Every value visits all its neighbours: each pair is computed twice, but nothing is written twice.
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


@triton.jit
def _prelu(
    x,
    add,
    slope,
    bias,
    out,
    tail,
    total,
    stride,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAIL: tl.constexpr,
    VALUES: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    inside = i < total
    pixel, channel = i // CHANNELS, i % CHANNELS
    value = tl.load(x + i, mask=inside, other=0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + channel, mask=inside, other=0).to(tl.float32)
    if ADD:
        value += tl.load(add + i, mask=inside, other=0).to(tl.float32)
    value = tl.where(value > 0, value, value * tl.load(slope + channel, mask=inside, other=0))
    value = value.to(out.dtype.element_ty)
    tl.store(out + pixel * stride + channel, value, mask=inside)
    if TAIL > 0:
        late = channel - (CHANNELS - TAIL)
        tl.store(tail + pixel * TAIL + late, value, mask=inside & (late >= 0))


@triton.jit
def _prepare(
    img0,
    img1,
    mean,
    out,
    total,
    size,
    CHANNELS: tl.constexpr,
    LANES: tl.constexpr,
    PIXELS: tl.constexpr,
):
    p, k = (tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS))[:, None], tl.arange(0, LANES)[None, :]
    n, inside, colour = p // size, p < total, k < 3
    middle = tl.load(mean + n, mask=inside, other=0)
    planar, place = (3 * n + k) * size + p % size, CHANNELS * p + k
    first = tl.where(colour, tl.load(img0 + planar, mask=inside & colour, other=0) - middle, 0)
    second = tl.where(colour, tl.load(img1 + planar, mask=inside & colour, other=0) - middle, 0)
    tl.store(out + place, first.to(out.dtype.element_ty), mask=inside & (k < CHANNELS))
    tl.store(out + CHANNELS * total + place, second.to(out.dtype.element_ty), mask=inside & (k < CHANNELS))


@triton.jit
def _doubled(coarse, n, y, x, height, width, k, inside):
    """Channel k of the coarse flow, doubled, at twice its size, at (y, x). height, width: of the coarse flow."""
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

    NaN becomes 0: what maximum makes of it differs between versions of Triton.
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
        # NaN stays NaN.
        value = tl.where(value < 0, 0.0, tl.where(value > 1, 1.0, value))
        tl.store(out + place + k * size, value, mask=inside)


@triton.jit
def _planar(img, x, y, height, width, inside):
    left, right, top, bottom, wx, wy = _corners(x, y, height, width)
    a = tl.load(img + top * width + left, mask=inside, other=0)
    b = tl.load(img + top * width + right, mask=inside, other=0)
    c = tl.load(img + bottom * width + left, mask=inside, other=0)
    d = tl.load(img + bottom * width + right, mask=inside, other=0)
    return _mix(a, b, c, d, wx, wy)
