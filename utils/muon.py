"""Muon: orthogonalised momentum, steps that go equally far in all directions of a layer's weight matrix.

Keller Jordan, 2024, https://kellerjordan.github.io/posts/muon/; the length of a step after Liu et al., "Muon is
Scalable for LLM Training", arXiv:2502.16982. torch.optim.Muon takes matrices only, and skipping a step there means
waiting for the device.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

MOMENTUM = 0.95
QUINTIC = 3.4445, -4.7750, 2.0315  # x -> a x + b x^3 + c x^5, repeated, takes nearly all in (0, 1] to about one
REPEATS = 5
RMS = 0.2  # of a step at learning rate 1, as AdamW's is in practice, so that AdamW's learning rates fit


class Muon(torch.optim.Optimizer):
    """Muon for kernels, fused AdamW without weight decay for biases and slopes.

    A kernel counts as a matrix with a row for each index of its first dimension. half: orthogonalise in bfloat16.
    found_inf: as in fused AdamW, a number on the device; a step changes nothing where it is not 0.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, half: bool = False):
        weights = list(weights)
        self.adamw = torch.optim.AdamW([w for w in weights if w.ndim < 2], lr=lr, weight_decay=0.0, fused=True)
        kernels = {"params": [w for w in weights if w.ndim >= 2]}
        super().__init__([kernels, *self.adamw.param_groups], {"lr": lr})
        self.adamw.state = self.state  # one optimizer to save and load
        self.half, self.found_inf = half, torch.zeros((), device=weights[0].device)
        self._step_supports_amp_scaling = True  # GradScaler then sets found_inf too, and does not wait for the device

    def load_state_dict(self, content: dict) -> None:
        super().load_state_dict(content)
        # By its own __setstate__, which adds options that earlier versions of PyTorch did not save.
        self.adamw.__setstate__({"state": self.state, "param_groups": self.param_groups[1:]})

    @torch.no_grad()
    def step(self) -> None:
        kernels, skipped = [k for k in self.param_groups[0]["params"] if k.grad is not None], self.found_inf > 0
        steps = []
        for kernel in kernels:
            if "momentum" not in self.state[kernel]:
                self.state[kernel]["momentum"] = torch.zeros_like(kernel)
            momentum = self.state[kernel]["momentum"]
            ahead = momentum.lerp(kernel.grad, 1 - MOMENTUM)
            momentum.copy_(torch.where(skipped, momentum, ahead))
            step = kernel.grad.lerp(ahead, MOMENTUM).flatten(1)  # Nesterov's
            steps.append(step.bfloat16() if self.half else step)
        # On a GPU, launching the kernels takes longer than running them; in float32, the arithmetic dominates.
        at_once = self.half and skipped.is_cuda and steps
        for kernel, turned in zip(kernels, together(steps) if at_once else map(orthogonal, steps)):
            length = self.param_groups[0]["lr"] * RMS * max(turned.shape) ** 0.5
            moved = kernel.add(turned.reshape(kernel.shape), alpha=-length)
            kernel.copy_(torch.where(skipped, kernel, moved))
        self.adamw.found_inf = self.found_inf
        self.adamw.step()


def together(matrices: Sequence[Tensor]) -> list[Tensor]:
    """`orthogonal` of each, as one batch, padded with zeros to one size; the padding stays zero. Up to four times the
    arithmetic."""
    lying = [_lying(matrix) for matrix in matrices]
    batch = lying[0].new_zeros(len(lying), *(max(matrix.shape[side] for matrix in lying) for side in (0, 1)))
    parts = [whole[: len(matrix), : matrix.shape[1]] for whole, matrix in zip(batch, lying)]
    for part, matrix in zip(parts, lying):
        part.copy_(matrix)
    turned = [whole[: len(matrix), : matrix.shape[1]] for whole, matrix in zip(orthogonal(batch), lying)]
    return [x if x.shape == matrix.shape else x.mT for x, matrix in zip(turned, matrices)]


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly the nearest matrix (.., M, N) whose singular values are all one, by Newton-Schulz steps: they end up
    between 0.7 and 1.2, those below 0.0015 of the norm lower. Zero stays zero."""
    a, b, c = QUINTIC
    x = _lying(matrix).flatten(0, -3) if matrix.ndim > 2 else _lying(matrix)[None]
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(REPEATS):
        gram = x @ x.mT
        x = x.baddbmm(gram.baddbmm(gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if matrix.shape[-2] <= matrix.shape[-1] else x.mT).view(matrix.shape)


def _lying(matrix: Tensor) -> Tensor:
    """Transposed where it is higher than wide, so that the Gram matrix is the smaller one."""
    return matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
