"""Vimeo90K, 2x: 3,782 triplets of 448x256, no padding (section 4.1 of the paper).

    python benchmarks/Vimeo90K.py
    python benchmarks/Vimeo90K.py --model_name IFRNet_S average dis --data data/vimeo_triplet
    torchrun --nproc_per_node=4 benchmarks/Vimeo90K.py --batch_size 16

Data, from http://toflow.csail.mit.edu (triplets):
    data/vimeo_triplet/tri_testlist.txt
    data/vimeo_triplet/sequences/00001/0266/im1.png im2.png im3.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import Case, Split
from benchmarks.common import Benchmark, parser, start
from datasets.vimeo90k import FRAMES, PAGE, TEST_LIST, read_list


def splits(root: Path, args: argparse.Namespace) -> list[Split]:
    cases = []
    for name in read_list(root, TEST_LIST, check=False):  # check_cases looks for all
        img0, target, img1 = (root / "sequences" / name / frame for frame in FRAMES)
        cases.append(Case(name, img0, img1, (target,)))
    return [Split("test", cases, full=3782)]


BENCHMARK = Benchmark("Vimeo90K", "vimeo_triplet", TEST_LIST, PAGE, splits)

if __name__ == "__main__":
    start(BENCHMARK, parser(__doc__))
