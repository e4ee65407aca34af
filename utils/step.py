"""One step of training: the recipe it follows, the state it changes, and what happens in it."""

import copy
import math
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.fast import cpu_has_bf16
from utils import distributed
from utils.muon import Muon

OPTIMIZERS = ("adamw", "muon")
AMP = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How a run trains, whatever its data and loss. The defaults are the paper's or neutral.

    iterations or minutes: the horizon. accumulate: batches per step. amp: precision of the convolutions. ema: decay of
    the averaged weights, 0: none. clip_grad: largest gradient norm, 0: no limit. optimizer: one of OPTIMIZERS; both
    take the same learning rates. log_every, eval_every: iterations; eval_every 0: only at the end. A run by the clock
    also logs after training.SILENCE seconds. save_every: minutes.
    max_bad_steps: this many steps in a row, skipped because a number was not finite, end the run.
    """

    iterations: int | None = None
    minutes: float | None = None
    lr_start: float = 1e-4
    lr_end: float = 1e-5
    accumulate: int = 1
    amp: str = "none"
    channels_last: bool = False
    compile: bool = False
    ema: float = 0.0
    clip_grad: float = 0.0
    optimizer: str = "adamw"
    log_every: int = 50
    eval_every: int = 0
    save_every: float = 10.0
    max_bad_steps: int = 20

    def __post_init__(self):
        if (self.iterations is None) == (self.minutes is None):
            raise ValueError("a run ends after a number of iterations or of minutes: give one of the two")

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def quickest_amp(device: torch.device) -> str:
    """The precision of AMP that the devices of all ranks have instructions for: without them, half precision is many
    times slower. All ranks must call this."""
    if device.type == "cuda":
        own = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    else:
        own = "bf16" if cpu_has_bf16() else "none"
    return min(distributed.gather(own), key=("none", "fp16", "bf16").index)


class State:
    """The whole state of a run: what a checkpoint holds, and what a resumed run starts from. The model is moved to the
    device, into the recipe's layout."""

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device, config: dict | None = None):
        self.model, self.recipe, self.device = model.to(device, memory_format=recipe.layout), recipe, device
        self.config = config or {}
        self.ema = copy.deepcopy(model).eval().requires_grad_(False) if recipe.ema else None
        if recipe.optimizer == "muon":
            self.optimizer = Muon(model.parameters(), recipe.lr_start, half=quickest_amp(device) == "bf16")
        else:  # fused: one kernel for all weights, which can also skip a step without the CPU knowing
            self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr_start, weight_decay=0.0, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
        self.iteration, self.validated, self.best = 0, 0, -math.inf
        self._seconds, self._begun = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent on this run, including that before an interruption."""
        return self._seconds + time.monotonic() - self._begun

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and written to best.pth: the averaged one where there is one."""
        return self.ema or self.model

    def content(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration,
            "validated": self.validated,
            "best": self.best,
            "seconds": self.seconds,
            "config": self.config,
            "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        }

    def load(self, content: dict) -> None:
        """Resume from what `content` returned, or from {"model", "iteration"}: weights alone, with a fresh optimizer.

        Weights alone are validated before their first step: they are the ones to beat. ValueError where the
        content belongs to another network, naming content["source"] if given, or to another optimizer.
        """
        source = content.get("source", "the run to resume")
        try:
            self.model.load_state_dict(content["model"])
        except RuntimeError as error:
            names = ("model_name", "activation")
            theirs, ours = (
                " with ".join(str(config[name]) for name in names if name in config)
                for config in (content.get("config") or {}, self.config)
            )
            way = "give its --model_name and --activation"
            if theirs and theirs == ours:  # of one's own, perhaps
                first = textwrap.shorten(str(error).partition("\n")[2].partition("\n")[0], 160)
                way = f"its code has changed since ({first}); begin anew, under another --log_path"
            raise ValueError(f"{source}: weights of {theirs or 'another network'}; {way}") from error
        if self.ema:
            self.ema.load_state_dict(content.get("ema") or content["model"])
        self.iteration, self.validated = content["iteration"], content.get("validated", -1)
        if "optimizer" not in content:
            return
        groups = content["optimizer"]["param_groups"]
        theirs = "muon" if len(groups) > 1 else "adamw"  # Muon's second group holds what AdamW steps for it
        if theirs != self.recipe.optimizer:
            raise ValueError(f"{source}: trained with {theirs}; give --optimizer {theirs}")
        self.optimizer.load_state_dict(copy.deepcopy(content["optimizer"]))  # it keeps and changes counts of steps
        for weight, moments in self.optimizer.state.items():  # a fused step reads them in the weight's memory layout
            for name in moments.keys() - {"step"}:
                moments[name] = torch.empty_like(weight).copy_(moments[name])
        if self.scaler.is_enabled() and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.best = content["best"]
        self._seconds, self._begun = content["seconds"], time.monotonic()
        torch.set_rng_state(content["random"]["cpu"])
        if len(content["random"]["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(content["random"]["cuda"])


def step(
    network: nn.Module,
    state: State,
    stream: Iterator,
    loss: Callable[..., dict[str, Tensor]],
    progress: float,
) -> tuple[dict[str, Tensor], Tensor, Tensor, int]:
    """One step of the optimizer, with the next `accumulate` batches of the stream.

    network: what `parallel` makes of the state. Returns the loss's terms, the gradient's norm, whether the step was
    skipped, because one of them was not finite, and the number of samples. Tensors are not read back from the device.
    """
    state.optimizer.zero_grad(set_to_none=True)
    buffers = list(state.model.buffers())  # of BatchNorm: what a forward pass changes
    before = [buffer.clone() for buffer in buffers]
    terms, samples, finite = _backward(network, state, stream, loss, progress)
    if not finite:
        for buffer, old in zip(buffers, before):
            buffer.copy_(old)
        return terms, torch.zeros(()), torch.ones(()), samples
    norm, bad = _update(state, sum(terms.values()))
    for buffer, old in zip(buffers, before):
        buffer.copy_(torch.where(bad > 0, old, buffer))
    if state.ema:
        _average(state.ema, state.model, min(state.recipe.ema, (1 + state.iteration) / (10 + state.iteration)))
    return terms, norm, bad, samples


def _backward(
    network: nn.Module, state: State, stream: Iterator, loss: Callable, progress: float
) -> tuple[dict[str, Tensor], int, bool]:
    """Gradients of the next `accumulate` batches; returns the terms' means, the number of samples, and, on a CPU,
    whether all were finite: where they are not, gradients are incomplete."""
    recipe, device = state.recipe, state.device
    samples, total, finite = 0, {}, True
    for k in range(recipe.accumulate):
        batch = _to_device(next(stream), device, recipe)
        samples += len(batch.img0)
        # Ranks exchange gradients once per step, with its last batch.
        alone = distributed.world_size() > 1 and k < recipe.accumulate - 1
        with network.no_sync() if alone else nullcontext():
            with torch.autocast(device.type, AMP[recipe.amp], enabled=recipe.amp != "none"):
                out = network(batch.img0, batch.img1, batch.t, batch.imgt)
            terms = {name: term / recipe.accumulate for name, term in loss(out, batch, progress).items()}
            if device.type == "cpu":
                # grid_sample's backward on the CPU reads out of bounds where a coordinate is NaN.
                watched = (*terms.values(), *(flow.sum() for flow in out.flows[:1]))
                broken = ~sum(watched).detach().isfinite()
                finite = finite and not distributed.maximum(broken.float())
            if finite:
                state.scaler.scale(sum(terms.values())).backward()
        total = {name: term.detach() + total.get(name, 0) for name, term in terms.items()}
    return total, samples, finite


def _update(state: State, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Change the weights by their gradients; returns the gradients' norm, and 1 if it or the loss was not finite, so
    that nothing has changed, else 0."""
    recipe = state.recipe
    state.scaler.unscale_(state.optimizer)
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    bad = distributed.maximum((~torch.isfinite(norm + loss)).float())
    if recipe.clip_grad:
        nn.utils.clip_grads_with_norm_(state.model.parameters(), recipe.clip_grad, norm)
    if not state.scaler.is_enabled():
        state.optimizer.found_inf = bad  # the fused step then changes nothing, and the CPU need not ask
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return norm, bad


def _to_device(batch, device: torch.device, recipe: Recipe):
    """A batch on the device, with its targets and times flat: one per predicted frame."""
    batch = batch._replace(imgt=batch.imgt.flatten(0, -4), t=batch.t.flatten())
    move = {
        name: x.to(device, memory_format=recipe.layout, non_blocking=True)
        for name, x in batch._asdict().items()
        if x.ndim == 4
    }
    return batch._replace(t=batch.t.to(device, non_blocking=True), **move)


@torch.no_grad()
def _average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    average(list(ema.parameters()), list(model.parameters()), None)
    for mine, theirs in zip(ema.buffers(), model.buffers()):
        mine.copy_(theirs)


def parallel(state: State) -> nn.Module:
    """The network as a step calls it: distributed over all ranks, compiled if the recipe says so."""
    network, on_gpu = state.model, state.device.type == "cuda"
    if on_gpu:
        torch.backends.cudnn.benchmark = True  # batches have one size, or two
    if distributed.world_size() > 1:
        ids = [state.device.index] if on_gpu else None
        network = DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)
    # Specialised to the sizes that occur, which are few: code for any size is slower.
    return torch.compile(network, dynamic=False) if state.recipe.compile else network
