"""The training loop: learning rate, step, log every N, validate, save; nothing is lost whenever it stops.

    fit(model, batches, loss, recipe, folder, device, validate=...)

The horizon of a run is a number of iterations or of minutes; `progress` is the share of it that is done, from 0 to 1,
and learning rate and loss weights are functions of it. With a horizon in iterations a run that was stopped anywhere and
resumed ends with the weights of an uninterrupted one; a horizon in minutes never repeats exactly. The loop waits for
the device only where it logs, validates or saves.
"""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import checkpoint, cli, distributed
from utils.journal import Journal
from utils.meter import Meter
from utils.step import Recipe, State, parallel, quickest_amp, step

SILENCE = 30  # seconds


def cosine(start: float, end: float) -> Callable[[float], float]:
    """The learning rate at a progress from 0 to 1: from start to end along half a cosine wave."""
    return lambda progress: end + (start - end) * (1 + math.cos(math.pi * min(progress, 1))) / 2


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

    A signal of cli.STOPPING ends the run after the current step: it is saved, and SystemExit raised. ValueError where
    too many steps in a row were not finite.
    """
    schedule = schedule or cosine(recipe.lr_start, recipe.lr_end)
    folder = Path(folder)
    state = State(model.train(), recipe, device, config)
    if resume:
        state.load(resume)
        _forget_best_elsewhere(state, folder)
    begun, validated = state.iteration, state.validated
    network = parallel(state)
    goes_on = resume is not None and (begun > 0 or "optimizer" in resume)  # bare weights start a run
    journal = Journal(folder, begun if goes_on else None, recipe.iterations) if distributed.is_main() else None
    quick = quickest_amp(device)
    if device.type == "cpu" and recipe.amp not in ("none", quick):
        _say(journal, f"note: {recipe.amp} takes several times as long on this processor; --amp {quick} does not")
    if journal:
        options = ", ".join(f"{name} {value}" for name, value in state.config.items() if value is not None)
        journal.log(f"begins at iteration {begun}: {options}")
    meter, saves = Meter(device), _Saves(state, folder, journal)
    told = None  # the time of the last line, in seconds, the same on all ranks
    stream = _together(meter.timed(batches(begun)))
    try:
        # Signals stay caught while the rest is saved: where one rank fails, the launcher ends the one that writes.
        with _signals() as asked_to_stop, _at_failure(saves):
            while True:
                signal_number, seconds = _agree(asked_to_stop(), state.seconds)
                if signal_number:
                    saves.save()
                    name = signal.Signals(signal_number).name
                    _say(journal, f"stopped by {name} after iteration {state.iteration}; --resume auto continues")
                    raise SystemExit(128 + signal_number)
                done = _progress(state, seconds, new=not goes_on)
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
                meter.add(*step(network, state, stream, loss, done))
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
        if journal:
            journal.close()
        stream.close()  # ends the reading processes, even if an exception still holds this frame
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
    """The share of the run that is done. A new run takes a step however long its start took: it then has a score."""
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
            "finite and were skipped; look at the data, or lower --lr_start, or give --clip_grad 1 or --amp none. If "
            f"it ends here when resumed, its weights have diverged: start from {checkpoint.BEST} in another --log_path"
        )


def _say(journal: Journal | None, line: str) -> None:
    if journal:
        journal.say(line)


@contextmanager
def _at_failure(saves: _Saves) -> Iterator[None]:
    """Save what is not saved yet, and log why the run ends: the screen may be gone when somebody asks."""
    try:
        yield
    except (Exception, SystemExit) as error:
        why = cli.one_line(str(error)) or type(error).__name__
        if isinstance(error, SystemExit):  # 2: see distributed.together; others are of a signal, which was told
            why = "another process has an error" if error.code == 2 else ""
        if saves.journal and why:
            saves.journal.log(f"ended after iteration {saves.state.iteration}: {why}")
        saves.save_rest()
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
    """Catch the signals of cli.STOPPING; yields a function that returns the signal's number, or 0. A later Ctrl-C
    interrupts."""
    number, since = 0, 0.0

    def note(received: int, _frame) -> None:
        nonlocal number, since
        if number and (received != signal.SIGINT or time.monotonic() - since <= cli.IMPATIENT):
            return
        cli.heard()  # the second of a launcher's two may come once the run is over
        if number:
            raise KeyboardInterrupt
        number, since = received, time.monotonic()

    with cli.handled(cli.STOPPING, note):
        yield lambda: number
