"""Adobe240, 8x: windows of nine frames of videos at 240 fps, stride 8, centre crop of 512x512, t = 1/8 .. 7/8.

    python benchmarks/Adobe240.py --videos 720p_240fps_1 720p_240fps_2

There is no official list of test videos: a result names the videos it is for, and compares only with results for the
same ones.

Data, from http://www.cs.ubc.ca/labs/imager/tr/2017/DeepVideoDeblurring, with ffmpeg -i VIDEO.mov VIDEO/%05d.png:
    data/Adobe240/720p_240fps_1/00001.png ..
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import Split, centre_512, find_folder, folders, windows
from benchmarks.common import Benchmark, parser, start
from utils import cli

PAGE = "http://www.cs.ubc.ca/labs/imager/tr/2017/DeepVideoDeblurring"


def splits(root: Path, args: argparse.Namespace) -> list[Split]:
    videos = list(dict.fromkeys(args.videos or [folder.name for folder in folders(root)]))
    if not videos:
        raise ValueError(f"{root}: no folders of frames; extract one per video: ffmpeg -i VIDEO.mov VIDEO/%05d.png")
    return [Split("8x", [case for video in videos for case in windows(find_folder(root, video, PAGE))], centre_512)]


BENCHMARK = Benchmark("Adobe240", "Adobe240", "", PAGE, splits, options=("videos",))


def command_line() -> cli.Parser:
    options = parser(__doc__)
    options.add_argument("--videos", nargs="+", help="folders of the test videos (default: all in --data)")
    return options


if __name__ == "__main__":
    start(BENCHMARK, command_line())
