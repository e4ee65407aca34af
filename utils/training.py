"""The training loop: learning rate, step, log every N, validate, save; nothing is lost whenever it stops.

    fit(model, batches, loss, recipe, folder, device, validate=...)

The horizon of a run is a number of iterations or of minutes; `progress` is the share of it that is done, from 0 to 1,
and learning rate and loss weights are functions of it. With a horizon in iterations a run that was stopped anywhere and
resumed ends with the weights of an uninterrupted one; a horizon in minutes never repeats exactly. The loop waits for
the device only where it logs, validates or saves.
"""

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.fast import cpu_has_bf16
from utils import checkpoint, distributed
from utils.journal import Journal
from utils.meter import Meter
from utils.muon import Muon

OPTIMIZERS = ("adamw", "muon")
AMP = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SILENCE = 30  # seconds
IMPATIENT = 2.0  # seconds: launchers send a signal twice at once; a person who sends it again later means it


@dataclass(frozen=True)
class Recipe:
    """How a run trains, whatever its data and loss. The defaults are the paper's or neutral.

    iterations or minutes: the horizon. accumulate: batches per step. amp: precision of the convolutions. ema: decay of
    the averaged weights, 0: none. clip_grad: largest gradient norm, 0: no limit. optimizer: one of OPTIMIZERS; both
    take the same learning rates. log_every, eval_every: iterations; eval_every 0: only at the end. A run by the clock
    also logs after SILENCE seconds. save_every: minutes.
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


def cosine(start: float, end: float) -> Callable[[float], float]:
    """The learning rate at a progress from 0 to 1: from start to end along half a cosine wave."""
    return lambda progress: end + (start - end) * (1 + math.cos(math.pi * min(progress, 1))) / 2


class State:
    """The whole state of a run: what a checkpoint holds, and what a resumed run starts from."""

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device, config: dict | None = None):
        self.model, self.recipe, self.config = model, recipe, config or {}
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
            config = content.get("config") or {}
            theirs = " with ".join(str(config[name]) for name in ("model_name", "activation") if name in config)
            raise ValueError(
                f"{source}: weights of {theirs or 'another network'}; give its --model_name and --activation"
            ) from error
        if self.ema:
            self.ema.load_state_dict(content.get("ema") or content["model"])
        self.iteration, self.validated = content["iteration"], content.get("validated", -1)
        if "optimizer" not in content:
            return
        groups = content["optimizer"]["param_groups"]
        theirs = "muon" if len(groups) > 1 else "adamw"  # Muon's second group holds what AdamW steps for it
        if theirs != self.recipe.optimizer:
            raise ValueError(f"{source}: trained with {theirs}; give --optimizer {theirs}")
        self.optimizer.load_state_dict(content["optimizer"])
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


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable],
    loss: Callable[..., dict[str, Tensor]],
    recipe: Recipe,
    folder: str | Path,
    device: torch.device,
    *,
    schedule: Callable[[float], float] | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    pictures: Callable[[nn.Module], dict] | None = None,
    resume: dict | None = None,
    config: dict | None = None,
) -> State:
    """Train `model` until the recipe's horizon, on every rank alike; returns the run's state.

    batches: iteration -> an endless iterable of the batches from there on (datasets.Sample, on any device),
    `accumulate` per step. loss: (Interpolation, batch, progress) -> named terms, whose sum is differentiated; the
    batch's targets and times are flat, one per predicted frame. schedule: progress -> learning rate (default: the
    recipe's cosine). validate: network -> named scores, on all ranks; the first, the higher the better, chooses
    best.pth. pictures: network -> RGB images by name, on the main rank. folder: where everything is written. resume: a
    checkpoint's content to resume from. config: numbers and strings to keep with it.

    SIGTERM and SIGINT end the run after the current step: it is saved, and SystemExit raised. ValueError where too many
    steps in a row were not finite.
    """
    schedule = schedule or cosine(recipe.lr_start, recipe.lr_end)
    folder = Path(folder)
    state = State(model.to(device, memory_format=recipe.layout).train(), recipe, device, config)
    if resume:
        state.load(resume)
        _forget_best_elsewhere(state, folder)
    begun, validated = state.iteration, state.validated
    network = parallel(state.model, recipe, device)
    goes_on = resume is not None and (begun > 0 or "optimizer" in resume)  # bare weights start a run
    journal = Journal(folder, begun if goes_on else None, recipe.iterations) if distributed.is_main() else None
    quick = quickest_amp(device)
    if device.type == "cpu" and recipe.amp not in ("none", quick):
        _say(journal, f"note: {recipe.amp} takes several times as long on this processor; --amp {quick} does not")
    meter, saves = Meter(device), _Saves(state, folder, journal)
    told = None  # the time of the last line, in seconds, the same on all ranks
    stream = _together(meter.timed(batches(begun)))
    try:
        # Signals stay caught while the rest is saved: where one rank fails, the launcher ends the one that writes.
        with _signals() as asked_to_stop, _at_failure(saves.save_rest):
            while True:
                signal_number, seconds = _agree(asked_to_stop(), state.seconds)
                if signal_number:
                    saves.save()
                    name = signal.Signals(signal_number).name
                    _say(journal, f"stopped by {name} after iteration {state.iteration}; --resume auto continues")
                    raise SystemExit(128 + signal_number)
                done = _progress(state, seconds, new=resume is None)
                if done >= 1 and meter.steps:
                    _report(journal, state, meter)
                if validate and _validation_due(state, done):
                    _check(state, meter)
                    with meter.paused():
                        saves.save(forgiving=True)  # progress must not be lost if a long validation is killed
                        _examine(state, validate, pictures, journal, folder)
                if done >= 1:
                    break

                for group in state.optimizer.param_groups:
                    group["lr"] = schedule(done)
                meter.add(*step(network, state, stream, loss, done, device))
                state.iteration += 1

                if journal:
                    journal.tick()
                told = seconds if told is None else told
                if state.iteration % recipe.log_every == 0 or recipe.minutes and seconds - told > SILENCE:
                    _report(journal, state, meter)
                    told = seconds
                if saves.due():
                    saves.save(forgiving=True)
            if state.iteration == begun:
                _keep_config(state, resume, judged=state.validated != validated)
                _say(journal, f"nothing to do at iteration {begun}: the run to resume has reached its end")
        saves.save()
    finally:
        stream.close()  # ends the reading processes, even if an exception still holds this frame
        if journal:
            journal.close()
    return state


class _Saves:
    """The checkpoints of a run: when one was last tried, and which iteration is in the folder."""

    def __init__(self, state: State, folder: Path, journal: Journal | None):
        self.state, self.folder, self.journal = state, folder, journal
        self.tried, self.kept = time.monotonic(), state.iteration

    def due(self) -> bool:
        return time.monotonic() - self.tried > 60 * self.state.recipe.save_every

    def save(self, forgiving: bool = False) -> None:
        """forgiving: only tell of an OSError, as a full disk may have room again before the run ends."""
        try:
            if self.journal:
                checkpoint.save(self.folder, self.state.content())
            self.kept = self.state.iteration
        except OSError as error:
            if not forgiving:
                raise
            self.journal.say(f"not saved at iteration {self.state.iteration}, trying again later: {error}")
        self.tried = time.monotonic()

    def save_rest(self) -> None:
        if self.state.iteration > self.kept:
            self.save()


def _forget_best_elsewhere(state: State, folder: Path) -> None:
    """Where the best network is not in this folder, the best score belongs to a run elsewhere: nothing is best yet."""
    there = distributed.gather((folder / checkpoint.BEST).is_file())[0]
    if state.best > -math.inf and not there:
        state.best, state.validated = -math.inf, -1


def _progress(state: State, seconds: float, new: bool) -> float:
    """The share of the run that is done. A new run takes a step, however long its start took, for there to be a
    score."""
    if new and state.iteration == 0:
        return 0.0
    recipe = state.recipe
    return state.iteration / recipe.iterations if recipe.iterations else seconds / 60 / recipe.minutes


def _validation_due(state: State, done: float) -> bool:
    """Whether the network is to be scored now: at the end, in its turn, or as weights alone; never twice."""
    every = state.recipe.eval_every
    in_turn = every > 0 and state.iteration % every == 0
    return state.validated < state.iteration and (done >= 1 or in_turn or state.validated < 0)


def _keep_config(state: State, resume: dict | None, judged: bool) -> None:
    """After a run without a step, keep the options that made all there is, except perhaps (`judged`) the score."""
    if before := (resume or {}).get("config"):
        anew = {"validation": state.config.get("validation")} if judged else {}
        state.config = before | anew


def _examine(
    state: State, validate: Callable, pictures: Callable | None, journal: Journal | None, folder: Path
) -> None:
    """Score the network, on all ranks, and keep its weights where they are the best so far; see `fit`."""
    distributed.as_on_main(state.judged.buffers())  # BatchNorm's come from a rank's own batches
    with _without_search():
        scores, drawn = validate(state.judged), pictures(state.judged) if pictures and journal else {}
    score = next(iter(scores.values()))
    best = score > state.best
    if journal:
        journal.numbers(state.iteration, scores)
        text = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        journal.say(f"iteration {state.iteration}: {text}{'  (best)' * best}")
        if drawn:
            journal.pictures(state.iteration, drawn)
        try:
            if best:
                checkpoint.write(folder / checkpoint.BEST, state.judged.state_dict())
        except OSError as error:  # such as a full disk: the next network that beats the one there may find room
            best = False
            journal.say(f"iteration {state.iteration}: the best, but not written: {error}")
    if distributed.gather(best)[0]:
        state.best = score
    state.validated = state.iteration
    state.model.train()  # validation may have put it into evaluation mode


@contextmanager
def _without_search() -> Iterator[None]:
    """Choose convolutions by cuDNN's heuristics: for frames of many sizes, a search takes longer than it saves."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def step(
    network: nn.Module,
    state: State,
    stream: Iterator,
    loss: Callable[..., dict[str, Tensor]],
    progress: float,
    device: torch.device,
) -> tuple[dict[str, Tensor], Tensor, Tensor, int]:
    """One step of the optimizer, with the next `accumulate` batches of the stream.

    network: what `parallel` makes of state.model. Returns the loss's terms, the gradient's norm, whether the step was
    skipped, because one of them was not finite, and the number of samples. Tensors are not read back from the device.
    """
    recipe = state.recipe
    state.optimizer.zero_grad(set_to_none=True)
    buffers = list(state.model.buffers())  # of BatchNorm: what a forward pass changes
    before = [buffer.clone() for buffer in buffers]
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
                broken = ~(sum(terms.values()) + out.flows[0].sum()).detach().isfinite()
                finite = finite and not distributed.maximum(broken.float())
            if finite:
                state.scaler.scale(sum(terms.values())).backward()
        total = {name: term.detach() + total.get(name, 0) for name, term in terms.items()}
    if not finite:
        for buffer, old in zip(buffers, before):
            buffer.copy_(old)
        return total, torch.zeros(()), torch.ones(()), samples

    state.scaler.unscale_(state.optimizer)
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    bad = distributed.maximum((~torch.isfinite(norm + sum(total.values()))).float())
    if recipe.clip_grad:
        nn.utils.clip_grads_with_norm_(state.model.parameters(), recipe.clip_grad, norm)
    if not state.scaler.is_enabled():
        state.optimizer.found_inf = bad  # the fused step then changes nothing, and the CPU need not ask
    state.scaler.step(state.optimizer)
    state.scaler.update()
    for buffer, old in zip(buffers, before):
        buffer.copy_(torch.where(bad > 0, old, buffer))
    if state.ema:
        _average(state.ema, state.model, min(recipe.ema, (1 + state.iteration) / (10 + state.iteration)))
    return total, norm, bad, samples


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


def parallel(model: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """The network as a step calls it: distributed over all ranks, compiled if the recipe says so."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # batches have one size, or two
    network = model
    if distributed.world_size() > 1:
        ids = [device.index] if device.type == "cuda" else None
        network = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    # Specialised to the sizes that occur, which are few: code for any size is slower.
    return torch.compile(network, dynamic=False) if recipe.compile else network


def _report(journal: Journal | None, state: State, meter: Meter) -> None:
    values, recipe, learning_rate = meter.read(), state.recipe, state.optimizer.param_groups[0]["lr"]
    if journal:
        terms = [name for name in values if name not in ("grad_norm", "bad_steps", "samples_per_s", "wait")]
        values = {"lr": learning_rate, "loss": sum(values[name] for name in terms), **values}
        if meter.device.type == "cuda":
            values["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        journal.numbers(state.iteration, values)
        clock = f", {state.seconds / 60:.1f} min, until {recipe.minutes or 0:.1f}"
        horizon = f"/{recipe.iterations}" if recipe.iterations else clock
        journal.say(
            f"iteration {state.iteration}{horizon}: lr {learning_rate:.3e}  loss {values['loss']:.5f}  ("
            + "  ".join(f"{name} {values[name]:.5f}" for name in terms)
            + f")  {values['samples_per_s']:.1f} samples/s  wait {values['wait']:.0%}"
            + (f"  {values['memory_gb']:.1f} GB" if "memory_gb" in values else "")
            + (f"  {values['bad_steps']:.0f} steps skipped, not finite" if values["bad_steps"] else "")
        )
    _check(state, meter)


def _check(state: State, meter: Meter) -> None:
    """ValueError where too many steps in a row were skipped; waits for the device."""
    longest = meter.longest.item()
    if longest >= state.recipe.max_bad_steps:
        raise ValueError(
            f"stopped at iteration {state.iteration}: {longest:.0f} steps in a row had a loss or gradient that is not "
            "finite and were skipped; look at the data, or lower --lr_start, or give --clip_grad 1 or --amp none"
        )


def _say(journal: Journal | None, line: str) -> None:
    if journal:
        journal.say(line)


@contextmanager
def _at_failure(act: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit):
        act()
        raise


def _together(batches: Iterator) -> Iterator:
    """Yield the batches while every rank can read its own: where one cannot, all end."""
    try:
        while True:
            with distributed.together():
                batch = next(batches)
            yield batch
    finally:
        batches.close()


def _agree(signal_number: int, seconds: float) -> tuple[int, float]:
    """The same answer on every rank: all stop after the same step, and all have the same time."""
    signal_number, seconds = distributed.maximum(torch.tensor([signal_number, seconds], dtype=torch.float64)).tolist()
    return int(signal_number), seconds


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Catch SIGTERM and SIGINT; yields a function that returns the signal's number, or 0. A later Ctrl-C interrupts."""
    number, since = 0, 0.0

    def note(received: int, _frame) -> None:
        nonlocal number, since
        if number and received == signal.SIGINT and time.monotonic() - since > IMPATIENT:
            raise KeyboardInterrupt
        number, since = number or received, since or time.monotonic()

    if threading.current_thread() is not threading.main_thread():  # Python allows signal handlers only there
        yield lambda: 0
        return
    before = {kind: signal.signal(kind, note) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: number
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
