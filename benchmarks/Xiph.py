"""Xiph, 2x in high resolution: eight clips of 4096x2160, frames 1..100; even ones, 2..98, predicted from neighbours.

    python benchmarks/Xiph.py

The protocol is that of softmax splatting (Niklaus and Liu, CVPR 2020): "2K" is halved, "4K" a centre crop of that size.

Data, from https://media.xiph.org/video/derf, with
ffmpeg -i Netflix_Tango_4096x2160_60fps_10bit_420.y4m -pix_fmt rgb24 -vframes 100 Tango-%03d.png:
    data/Xiph/Tango-001.png .. Tango-100.png        # or Tango/001.png .. Tango/100.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import Case, Split, centre_half, halved
from benchmarks.common import Benchmark, parser, start

CLIPS = (
    "BoxingPractice", "Crosswalk", "DrivingPOV", "FoodMarket", "FoodMarket2", "RitualDance", "SquareAndTimelapse",
    "Tango",
)  # fmt: skip
FIRST, LAST = 2, 98


def splits(root: Path, args: argparse.Namespace) -> list[Split]:
    cases = []
    for clip in CLIPS:
        name = f"{clip}/{{:03d}}.png" if (root / clip).is_dir() else f"{clip}-{{:03d}}.png"
        for k in range(FIRST, LAST + 1, 2):
            img0, target, img1 = (root / name.format(n) for n in (k - 1, k, k + 1))
            cases.append(Case(f"{clip}-{k:03d}", img0, img1, (target,)))
    return [Split("2K", cases, halved, full=392), Split("4K", cases, centre_half, full=392)]


BENCHMARK = Benchmark("Xiph", "Xiph", "", "https://media.xiph.org/video/derf", splits)

if __name__ == "__main__":
    start(BENCHMARK, parser(__doc__))
