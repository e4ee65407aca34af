"""How near a prediction is to the truth: PSNR, SSIM, interpolation error; and how much a video flickers.

Every metric of images takes (prediction, target), float (B, 3, H, W) in [0, 1], on any device, and returns one value
per image, (B,). ValueError for other types and shapes, which would silently be scored wrongly. Sums are made in
float64, so that a value does not depend on how many images were scored together, but for its last bits.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers import warp
from utils.flow_check import consistent, inside

EXACT = 100.0  # dB, see bounded_psnr
WINDOW, SIGMA = 11, 1.5  # SSIM's Gaussian window (Wang et al., 2004)
C1, C2 = 0.01**2, 0.03**2  # SSIM's constants for values in [0, 1]


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, -10 log10(mean squared error); infinite for equal images."""
    check_images(prediction, target)
    return -10 * torch.log10(((prediction - target).double() ** 2).mean((1, 2, 3)))


def bounded_psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """PSNR, at most EXACT: one frame that is exact, such as a black one, would make every mean infinite."""
    return psnr(prediction, target).clamp(max=EXACT)


def ie(prediction: Tensor, target: Tensor) -> Tensor:
    """Interpolation error: mean absolute difference of the rounded images, in grey levels 0..255."""
    check_images(prediction, target)
    return (torch.round(255 * prediction) - torch.round(255 * target)).double().abs().mean((1, 2, 3))


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity with the 3-D window of the paper's protocol.

    The window, 11x11x11, also averages over the three channels, which are taken as depth; borders are replicated by 5
    in all three directions. Higher by about 0.01 than the 2-D value of the same images: never compare the two.
    """
    check_images(prediction, target)

    def blur(x: Tensor) -> Tensor:
        for dim in (1, 2, 3):
            first, last = x.narrow(dim, 0, 1), x.narrow(dim, -1, 1)
            x = _blur(torch.cat([first] * (WINDOW // 2) + [x] + [last] * (WINDOW // 2), dim), dim)
        return x

    return _ssim(prediction, target, blur)


def ssim_2d(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity as Wang et al. (2004) define it: an 11x11 window in each channel, the mean of the three.

    Only windows that lie wholly inside the image count. ValueError for images smaller than one window.
    """
    check_images(prediction, target)
    height, width = target.shape[-2:]
    if min(height, width) < WINDOW:
        raise ValueError(f"an image of {width}x{height} holds no window of {WINDOW}x{WINDOW} for the 2-D SSIM")
    return _ssim(prediction, target, lambda x: _blur(_blur(x, 2), 3))


def warping_error(video: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """Flicker: how much a video changes along its motion (E_warp of Lai et al., ECCV 2018, equations 6 and 7).

    video: (N, 3, H, W) in [0, 1]; forward, backward: flow between its frames, i -> i + 1 and back, (N - 1, 2, H, W) in
    pixels. The mean over all neighbours of the squared difference between a frame and the next one, brought there by
    flow, over pixels visible in both. One number. A blurred video scores well: never read it without PSNR. ValueError
    for a video of another type or shape.
    """
    check_images(video, video)
    seen = (inside(forward) & consistent(forward, backward)).double()
    change = ((warp(video[1:], forward) - video[:-1]).double() ** 2).mean(1, keepdim=True)
    of_pairs = (seen * change).sum((1, 2, 3)) / seen.sum((1, 2, 3)).clamp(min=1)
    return of_pairs.mean()


def check_images(prediction: Tensor, target: Tensor) -> None:
    """ValueError where these are not tensors of images of one size as floats, (B, 3, H, W)."""
    for image in (prediction, target):
        if not isinstance(image, Tensor):
            raise ValueError(f"images of type {type(image).__name__}; tensors are needed, RGB in [0, 1], (B, 3, H, W)")
        if not image.is_floating_point():
            raise ValueError(f"images of type {image.dtype}; floats in [0, 1] are needed: divide bytes by 255")
    if prediction.shape != target.shape or prediction.ndim != 4 or prediction.shape[1] != 3:
        shapes = " and ".join(str(tuple(image.shape)) for image in (prediction, target))
        raise ValueError(f"images of shapes {shapes}; both must have the same, (B, 3, H, W)")


def _ssim(prediction: Tensor, target: Tensor, blur: Callable[[Tensor], Tensor]) -> Tensor:
    x, y = prediction.double(), target.double()  # variances are differences of nearly equal numbers
    mean_x, mean_y = blur(x), blur(y)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    luminance = (2 * product + C1) / (squares + C1)
    structure = (2 * (blur(x * y) - product) + C2) / (blur(x * x + y * y) - squares + C2)
    return (luminance * structure).mean((1, 2, 3))


def _blur(x: Tensor, dim: int) -> Tensor:
    """Gaussian mean along one dimension, which shrinks by the window's size less one."""
    offsets = torch.arange(WINDOW, dtype=torch.float64, device="cpu") - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    size = x.shape[dim] - WINDOW + 1
    total = torch.zeros_like(x.narrow(dim, 0, size))
    # A sum of shifted views: on the CPU six times faster than a convolution in float64.
    for k, weight in enumerate((weights / weights.sum()).tolist()):
        total.add_(x.narrow(dim, k, size), alpha=weight)
    return total
