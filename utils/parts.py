"""The parts of a job, in a folder beside its result: complete parts survive whatever ends the job."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from . import io

# Marks in the folder, with names that `begun` passes over: the existing result holds a part, or all.
SHOWN, JOINED = "settings.part_shown", "settings.joined"


def folder_of(out: Path) -> Path:
    """Where the parts of `out` are while it is unfinished."""
    return out.with_name(f".{out.name}.parts")


def begun(out: Path) -> bool:
    """Whether there is something to resume from: more than settings and a part that was never complete."""
    return any(not path.name.startswith(("settings", "making", ".")) for path in folder_of(out).glob("*"))


def holds_part(out: Path) -> bool:
    """Whether the existing result holds what was complete at an interrupt, no more."""
    return out.exists() and (folder_of(out) / SHOWN).exists()


class Parts:
    """Numbered files or folders. settings: what must be the same for two runs to make the same parts."""

    def __init__(self, out: Path, suffix: str, settings: dict[str, str]):
        self.out, self.suffix, self.settings = out, suffix, settings
        self.folder = folder_of(out)

    def begin(self, resume: bool) -> None:
        """Make the folder; with `resume` keep what is complete in it, otherwise nothing. ValueError where other
        settings made it."""
        record = self.folder / "settings.json"
        joined = resume and self.joined
        if not joined and self.folder.is_dir():  # also where the result is gone: the next one may be a part
            (self.folder / JOINED).unlink(missing_ok=True)
        if joined or resume and record.is_file():
            before = json.loads(record.read_text()) if record.is_file() else self.settings
            for name in (*self.settings, *before):
                if before.get(name) != self.settings.get(name):
                    was, now = before.get(name), self.settings.get(name)
                    raise ValueError(f"{self.out}: was begun with {name} {was}, not {now}; keep it, or start anew")
            for pattern in ("unfinished-*", "making-*", ".*"):  # the last: temporary names, such as the result's
                for leftover in self.folder.glob(pattern):
                    self._clear(leftover)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.iterdir():
                if not (old.name == SHOWN and self.out.exists()):  # until the new result takes its place
                    self._clear(old)
            try:
                io.write_bytes(record, json.dumps(self.settings, indent=1).encode())
            except OSError:
                if not holds_part(self.out):
                    self.remove()
                raise

    @staticmethod
    def _clear(path: Path) -> None:
        if path.name != io.LOCK:  # with which this run may hold the folder
            _remove(path)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}{self.suffix}"

    def skip(self, number: int) -> None:
        """Record that a part has no content."""
        self._skipped(number).touch()

    def _skipped(self, number: int) -> Path:
        return self.folder / f"nothing-{number:06d}"

    def _done(self, number: int) -> bool:
        return self.path(number).exists() or self._skipped(number).exists()

    def missing(self, first: int, last: int) -> list[range]:
        """The ranges of numbers in [first, last) whose parts are not complete."""
        runs: list[range] = []
        for number in range(first, first if self.joined else last):
            if self._done(number):
                continue
            if runs and runs[-1].stop == number:
                runs[-1] = range(runs[-1].start, number + 1)
            else:
                runs.append(range(number, number + 1))
        return runs

    def show_part(self) -> None:
        (self.folder / SHOWN).touch()

    @property
    def joined(self) -> bool:
        """Whether the existing result holds all parts, of which some may be removed already."""
        return self.out.exists() and (self.folder / JOINED).exists()

    def remove_joined(self) -> None:
        """As `remove`; where it is cut short, parts that are gone are not missing."""
        (self.folder / JOINED).touch()
        self.remove()

    def finished(self) -> list[Path]:
        return sorted(self.folder.glob(f"[0-9]*{self.suffix}"))

    def unfinished(self) -> list[Path]:
        """All complete parts up to the first gap, and the one that an interrupt closed early, if it comes next."""
        gap = next(number for number in count() if not self._done(number))
        whole = [self.path(number) for number in range(gap) if self.path(number).exists()]
        return whole + sorted(self.folder.glob(f"unfinished-{gap:06d}{self.suffix}"))

    @contextmanager
    def making(self, number: int, writer: Callable[[Path], Any]) -> Iterator[Any]:
        """Yield a writer for one part, which gets its name when it is complete. An interrupt closes it as it is."""
        temporary = self.folder / f"making-{number:06d}{self.suffix}"
        _remove(temporary)
        file = writer(temporary)
        try:
            yield file
        except KeyboardInterrupt:
            file.close()
            if file.written:
                temporary.replace(self.folder / f"unfinished-{number:06d}{self.suffix}")
            raise
        except BaseException:
            file.abandon()
            _remove(temporary)
            raise
        file.close()
        temporary.replace(self.path(number))

    def remove(self) -> None:
        """Remove the parts, and the folder unless this run holds it."""
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir(), key=lambda path: path.name == JOINED):  # that last
                self._clear(path)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
