"""SNU-FILM, 2x: four splits of 310 triplets of up to 1280x720, flow at scale 0.8 (section 4.1 of the paper).

    python benchmarks/SNU_FILM.py
    python benchmarks/SNU_FILM.py --protocol ema        # scale 0.5 and test-time augmentation, as EMA-VFI does

Data, from https://myungsub.github.io/CAIN; each line of a list names first frame, target and last frame:
    data/SNU-FILM/test-easy.txt test-medium.txt test-hard.txt test-extreme.txt
    data/SNU-FILM/test/
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import Case, Split
from benchmarks.common import Benchmark, parser, start
from utils import io

PAGE = "https://myungsub.github.io/CAIN"
SPLITS = ("easy", "medium", "hard", "extreme")
SCALE, SCALE_EMA = 0.8, 0.5  # the paper's, which makes sides multiples of 20; EMA-VFI's


def splits(root: Path, args: argparse.Namespace) -> list[Split]:
    return [Split(name, cases(root, root / f"test-{name}.txt"), full=310) for name in SPLITS]


def cases(root: Path, path: Path) -> list[Case]:
    """One for each line of a list: the paths of the first frame, the target and the last, relative to the root."""
    found = []
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list; all of test-{{{','.join(SPLITS)}}}.txt are needed, see {PAGE}")
    for number, line in enumerate(io.read_text(path).splitlines(), start=1):
        # In the published lists, paths begin with the authors' own folder.
        names = [name.rpartition("SNU-FILM/")[2] for name in line.split()]
        if len(names) not in (0, 3):
            raise ValueError(f"{path}, line {number}: {len(names)} paths, not three (first, target, last)")
        if names:
            img0, target, img1 = (root / name for name in names)
            found.append(Case(f"{number:04d}", img0, img1, (target,)))
    return found


BENCHMARK = Benchmark(
    "SNU_FILM",
    "SNU-FILM",
    "test-easy.txt",
    PAGE,
    splits,
    scale=SCALE,
    scales={"ema": SCALE_EMA},
)

if __name__ == "__main__":
    start(BENCHMARK, parser(__doc__))
