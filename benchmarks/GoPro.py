"""GoPro, 8x: windows of nine frames of the eleven test videos, stride 8, centre crop of 512x512, t = 1/8 .. 7/8.

    python benchmarks/GoPro.py --model_name IFRNet --checkpoint IFRNet_GoPro.pth

The weights must handle any t: the shipped ones and the published *_GoPro.pth do, the published *_Vimeo90K.pth do not.

Data, from https://seungjunnah.github.io/Datasets/gopro (GOPRO_Large_all); the folder test/ may be left out:
    data/GOPRO/test/GOPR0384_11_00/000001.png ..
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import Split, centre_512, find_folder, windows
from benchmarks.common import Benchmark, parser, start
from datasets.gopro import PAGE, TEST_VIDEOS


def splits(root: Path, args: argparse.Namespace) -> list[Split]:
    parent = root / "test" if (root / "test").is_dir() else root  # some copies lack test/
    cases = [case for video in TEST_VIDEOS for case in windows(find_folder(parent, video, PAGE))]
    return [Split("8x", cases, centre_512)]


BENCHMARK = Benchmark("GoPro", "GOPRO", "", PAGE, splits)

if __name__ == "__main__":
    start(BENCHMARK, parser(__doc__))
