"""Your own footage: windows of consecutive frames, the outer two given, those between predicted.

    python benchmarks/Clips.py --data FOLDER --model_name average dis IFRNet_S
    python benchmarks/Clips.py --data FOLDER --clips a.mp4 b.mp4 --frames 9 --by_motion

A window of 3 frames asks for t = 1/2, one of 9 for t = 1/8 .. 7/8. Windows begin every --step frames; those with a cut,
a repeated frame or a leap in time are left out, the others stored as pictures, so that all models see the same ones.
Scores on clips that a model was trained on prove nothing: name the others in --clips. Motion is the 95th percentile of
the length of DIS flow between a window's outer frames.

Data: a folder of videos or folders of frames, or Vimeo90K's, of which only the test list is scored:
    FOLDER/a.mp4 ..    FOLDER/b/000001.png ..
"""

import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.cases import Case, Split
from benchmarks.common import Benchmark, parser, run
from datasets import clips
from models.flow.dis import DIS
from utils import cli, io

RANGES = (0, 8, 16, 32)  # pixels: lower bounds of the ranges of motion
LIST = "windows.txt"  # written last: if it exists, so do all windows


def motion(frames: np.ndarray) -> float:
    """The 95th percentile of the length of DIS flow from the first to the last of frames (N, H, W, 3) uint8."""
    first, last = io.to_float(frames[0])[None], io.to_float(frames[-1])[None]
    return DIS().estimate(first, last).norm(dim=1).quantile(0.95).item()


def cut(args: argparse.Namespace) -> Path:
    """Write the windows as pictures, once, beside the decoded clips; returns their folder."""
    found = clips.open_clips(args.data, args.clips, longest=args.longest, lists=clips.TEST_LISTS)
    asked = repr(([str(clip.frames.path) for clip in found], args.frames, args.step, args.per_clip))
    root = clips.CACHE / f"windows-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    if (root / LIST).is_file():
        return root
    with io.alone_in(clips.CACHE):  # one rank writes, the others wait for it
        if (root / LIST).is_file():
            return root
        lines = []
        for clip in found:
            windows = clips.windows([clip], args.frames, step=args.step)
            if args.per_clip and windows:
                places = np.linspace(0, len(windows) - 1, min(args.per_clip, len(windows)))
                windows = [windows[place] for place in places.astype(int)]
            for window in windows:
                for number, frame in enumerate(window.frames, start=1):
                    io.write_image(root / window.name / f"im{number}.png", frame)
                lines.append(f"{motion(window.frames):.2f} {window.name}\n")
        if not lines:
            what = f"{args.frames} frames without a cut, a repeat or a leap in time"
            raise ValueError(f"{args.data}: no clip has {what}; give fewer --frames, or a smaller --step")
        io.write_bytes(root / LIST, "".join(lines).encode(errors="surrogateescape"))  # names of any bytes
    return root


def splits(root: Path, args: argparse.Namespace) -> list[Split]:
    times = tuple(k / (args.frames - 1) for k in range(1, args.frames - 1))
    cases = []
    for line in io.read_bytes(root / LIST).decode(errors="surrogateescape").splitlines():
        length, name = line.split(" ", 1)
        first, *targets, last = (root / name / f"im{number}.png" for number in range(1, args.frames + 1))
        cases.append((float(length), Case(name, first, last, tuple(targets), times)))
    if not args.by_motion:
        return [Split("all", [case for _, case in cases])]
    found = {f"{low} px up": [] for low in RANGES}
    for length, case in cases:
        found[f"{max(low for low in RANGES if low <= length)} px up"].append(case)
    return [Split(name, inside) for name, inside in found.items() if inside]


BENCHMARK = Benchmark(
    "Clips", "", LIST, "the folder named by --data", splits, options=("clips", "step", "per_clip", "longest")
)


def main(args: argparse.Namespace) -> None:
    if args.data is None:
        raise ValueError("--data: name the folder of clips")
    if args.frames < 3:
        raise ValueError(f"--frames {args.frames}: give 3 or more, the outer two and at least one between them")
    name = f"Clips_{args.frames - 1}x" + "_by_motion" * args.by_motion  # results that differ have different names
    args.data = cut(args)
    run(BENCHMARK._replace(name=name), args)


def command_line() -> cli.Parser:
    options = parser(__doc__, data="folder of the clips; must be given")
    options.add_argument("--clips", nargs="+", metavar="NAME", help="names of the clips to take (default: all)")
    options.add_argument("--frames", type=cli.positive, default=3, help="in a window: 3 for 2x, 9 for 8x (%(default)s)")
    options.add_argument("--step", type=cli.positive, default=5, help="frames between windows' starts (%(default)s)")
    options.add_argument("--per_clip", type=cli.positive, help="windows per clip at most, evenly spaced (default: all)")
    about = "halve clips until their longer side is at most this (default: %(default)s)"
    options.add_argument("--longest", type=cli.positive, default=640, help=about)
    options.add_argument("--by_motion", action="store_true", help="a row for each range of motion, not one for all")
    return options


if __name__ == "__main__":
    cli.run(main, command_line())
