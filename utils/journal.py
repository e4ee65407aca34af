"""The records of a run: lines on screen and in train.log, numbers in metrics.csv and TensorBoard, a progress bar."""

import csv
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np

from . import io

LOG, METRICS = "train.log", "metrics.csv"


class Journal:
    """The records in a run's folder, kept by its main rank. A full disk costs lines of them, not the run.

    start: the iteration at which the run resumes, None for a new one; what an interrupted run recorded beyond it is
    dropped, because it will happen again. total: iterations of the run, None where the clock decides.
    """

    def __init__(self, folder: str | Path, start: int | None = None, total: int | None = None):
        # Here, because a TensorBoard import takes seconds and programs without a journal must not wait for it.
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        self.folder, self.warned = Path(folder), False
        self.folder.mkdir(parents=True, exist_ok=True)
        io.clear_left(self.folder / METRICS)
        self.columns, self.rows = ([], []) if start is None else self._until(start)
        self._rewrite()
        self.open_board = partial(SummaryWriter, self.folder)
        self.usual, threading.excepthook = threading.excepthook, self._at_end_of_thread
        with io.naming(self.folder):
            self.board = self.open_board(purge_step=0 if start is None else start + 1)
        self.bar = tqdm(total=total, initial=start or 0, unit="it", dynamic_ncols=True, disable=not sys.stderr.isatty())

    def say(self, line: str) -> None:
        """One line, on the screen and, with its time, in train.log."""
        with self._forgiving():
            self._show(line)
        self.log(line)

    def log(self, line: str) -> None:
        """One line in train.log alone, with its time."""
        with self._forgiving(), open(self.folder / LOG, "a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")

    def numbers(self, iteration: int, values: dict[str, float]) -> None:
        """A row of metrics.csv, and a point of every curve."""
        row = {"iteration": str(iteration), **{name: f"{value:.6g}" for name, value in values.items()}}
        if self.rows and row.items() <= self.rows[-1].items():
            return  # of a validation after which a run was killed, before the next checkpoint: it is made again
        new = [name for name in row if name not in self.columns]
        self.rows.append(row)
        self.columns += new
        with self._forgiving():
            if new:
                self._rewrite()
            else:
                with open(self.folder / METRICS, "a", newline="") as file:
                    csv.DictWriter(file, self.columns).writerow(row)
            with self._writer() as board:
                for name, value in values.items():
                    board.add_scalar(name, value, iteration)

    def pictures(self, iteration: int, images: dict[str, np.ndarray]) -> None:
        """RGB uint8 (H, W, 3) by name, to TensorBoard."""
        with self._forgiving(), self._writer() as board:
            for name, image in images.items():
                board.add_image(name, image, iteration, dataformats="HWC")

    def tick(self) -> None:
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
        with self._forgiving():
            self.board.close()
        threading.excepthook = self.usual

    @contextmanager
    def _writer(self) -> Iterator:
        """TensorBoard's writer. One that met a full disk takes no more points, even if there is room again: a new one
        follows it."""
        try:
            yield self.board
        except OSError:
            self.board = self.open_board()
            raise

    def _at_end_of_thread(self, how: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread ends at a full disk; its error is raised again, and told, with the next point."""
        if not (isinstance(how.exc_value, OSError) and type(how.thread).__module__.startswith("tensorboard")):
            self.usual(how)

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self.warned:
                with suppress(OSError):
                    self._show(f"{self.folder}: not everything printed here can be written to the log: {error}")
            self.warned = True

    def _show(self, line: str) -> None:
        self.bar.write(line)
        sys.stdout.flush()

    def _until(self, iteration: int) -> tuple[list[str], list[dict]]:
        path = self.folder / METRICS
        if not path.is_file():
            return [], []
        whole = path.read_text().rpartition("\n")[0]  # a killed run may have cut its last line
        reader = csv.DictReader(whole.splitlines())
        if whole and "iteration" not in reader.fieldnames:
            raise ValueError(f"{path}: its columns are not those of a run; move it away")
        # A disk that was full for a while leaves half a line, with the next one appended to it.
        lines = [row for row in reader if None not in row and (row["iteration"] or "").isdecimal()]
        rows = [row for row in lines if int(row["iteration"]) <= iteration]
        return list(reader.fieldnames or []), rows

    def _rewrite(self) -> None:
        with io.replacing(self.folder / METRICS) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if self.columns:
                writer.writeheader()
            writer.writerows(self.rows)
