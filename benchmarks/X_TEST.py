"""X-TEST, 8x in high resolution: fifteen scenes of 33 frames of 4096x2160; 4, 8, .. 28 predicted from 0 and 32.

    python benchmarks/X_TEST.py --scale 0.25

"4K" is full size, "2K" halved (XVFI, Sim, Oh and Kim, ICCV 2021). Motion is large: a smaller --scale finds more of it.

Data, from https://github.com/JihyongOh/XVFI:
    data/X_TEST/Type1/TEST01_003_f0433/0000.png .. 0032.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import Case, Split, folders, halved
from benchmarks.common import Benchmark, parser, start
from utils.io import list_images

FRAMES, STEP = 33, 4


def splits(root: Path, args: argparse.Namespace) -> list[Split]:
    kinds = sorted(filter(Path.is_dir, root.glob("Type*")))  # not the archives
    cases = [window(scene) for kind in kinds for scene in folders(kind)]
    return [Split("2K", cases, halved, full=15), Split("4K", cases, full=15)]


def window(scene: Path) -> Case:
    frames = list_images(scene)
    if len(frames) != FRAMES:
        raise ValueError(f"{scene}: {len(frames)} frames, not {FRAMES}; copy the scene again")
    times = tuple(k / (FRAMES - 1) for k in range(STEP, FRAMES - 1, STEP))
    return Case(f"{scene.parent.name}/{scene.name}", frames[0], frames[-1], tuple(frames[STEP:-1:STEP]), times)


BENCHMARK = Benchmark("X_TEST", "X_TEST", "Type1", "https://github.com/JihyongOh/XVFI", splits)

if __name__ == "__main__":
    start(BENCHMARK, parser(__doc__))
