"""UCF101, 2x: the 379 triplets of 256x256 that were chosen for Deep Voxel Flow, no padding (section 4.1 of the paper).

    python benchmarks/UCF101.py
    python benchmarks/UCF101.py --model_name IFRNet_S average dis --data data/UCF101

Data, from https://people.cs.umass.edu/~hzjiang/projects/superslomo:
    data/UCF101/ucf101_interp_ours/1/frame_00.png frame_01_gt.png frame_02.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import Case, Split, folders
from benchmarks.common import Benchmark, parser, start

FOLDER = "ucf101_interp_ours"


def splits(root: Path, args: argparse.Namespace) -> list[Split]:
    cases = []
    for folder in folders(root / FOLDER):
        img0, target, img1 = (folder / name for name in ("frame_00.png", "frame_01_gt.png", "frame_02.png"))
        cases.append(Case(folder.name, img0, img1, (target,)))
    return [Split("test", cases, full=379)]


BENCHMARK = Benchmark("UCF101", "UCF101", FOLDER, "https://people.cs.umass.edu/~hzjiang/projects/superslomo", splits)

if __name__ == "__main__":
    start(BENCHMARK, parser(__doc__))
