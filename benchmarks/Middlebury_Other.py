"""Middlebury Other, 2x: twelve triplets of up to 640x480, padded with zeros at the right and bottom to 640x480.

    python benchmarks/Middlebury_Other.py
    python benchmarks/Middlebury_Other.py --submission  # frames for the online benchmark, whose targets are not public

Data, from https://vision.middlebury.edu/flow/data (for a submission only eval-data/):
    data/Middlebury/other-data/Beanbags/frame10.png frame11.png
    data/Middlebury/other-gt-interp/Beanbags/frame10i11.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import Case, Split, check_cases
from benchmarks.common import Benchmark, find_data, parser, run, write_predictions
from models import Padding
from utils import cli

NAMES = (
    "Beanbags", "Dimetrodon", "DogDance", "Grove2", "Grove3", "Hydrangea", "MiniCooper", "RubberWhale", "Urban2",
    "Urban3", "Venus", "Walking",
)  # fmt: skip
SUBMISSION = ("Mequon", "Schefflera", "Urban", "Teddy", "Backyard", "Basketball", "Dumptruck", "Evergreen")
TARGET = "frame10i11.png"
OF_SCORES = ("limit", "metrics", "lpips_weights", "batch_size", "workers", "skip_broken", "save_frames")  # options


def splits(root: Path, args: argparse.Namespace) -> list[Split]:
    cases = [
        Case(name, *inputs(root / "other-data" / name), (root / "other-gt-interp" / name / TARGET,)) for name in NAMES
    ]
    return [Split("other", cases, full=len(NAMES))]


def inputs(folder: Path) -> tuple[Path, Path]:
    return folder / "frame10.png", folder / "frame11.png"


BENCHMARK = Benchmark(
    "Middlebury_Other",
    "Middlebury",
    "other-data",
    "https://vision.middlebury.edu/flow/data",
    splits,
    padding=Padding("zeros", size=(480, 640), centred=False),
    metrics=("psnr", "ssim", "ie"),
)
EVALUATION = BENCHMARK._replace(name="Middlebury_Evaluation", looked_for="eval-data")


def main(args: argparse.Namespace) -> None:
    if not args.submission:
        return run(BENCHMARK, args)
    cli.refuse(args, command_line(), OF_SCORES, "has no effect with --submission, which scores nothing; leave it out")
    root = find_data(EVALUATION, args.data)
    pairs = {f"{name}/{TARGET}": inputs(root / "eval-data" / name) for name in SUBMISSION}
    check_cases(root, [Split("evaluation", [Case(name, *pair, ()) for name, pair in pairs.items()])], EVALUATION.page)
    write_predictions(EVALUATION, args, pairs)


def command_line() -> cli.Parser:
    options = parser(__doc__)
    options.add_argument("--submission", action="store_true", help="write the frames that the online benchmark wants")
    return options


if __name__ == "__main__":
    cli.run(main, command_line())
