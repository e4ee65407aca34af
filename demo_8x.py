"""Make seven frames between two frames, evenly spaced in time, and an animation of the nine.

    python demo_8x.py
    python demo_8x.py --img0 a.png --img1 b.png --out out --model_name IFRNet --checkpoint IFRNet_GoPro.pth

The weights must support any t: the shipped ones do, the published *_Vimeo90K.pth do not.
"""

import argparse

from demo_2x import between, parser
from utils import cli, io

TIMES = [k / 8 for k in range(1, 8)]


def main(args: argparse.Namespace) -> None:
    frames = between(args, TIMES, [f"demo_8x_{number}.png" for number in range(1, 8)])
    for number, frame in enumerate(frames[1:-1], start=1):
        io.write_image(args.out / f"demo_8x_{number}.png", frame)
    io.write_gif(args.out / "demo_8x.gif", frames, seconds=0.1)
    print(f"wrote the frames to {args.out / 'demo_8x_1.png'} .. 7, the animation to {args.out / 'demo_8x.gif'}")


if __name__ == "__main__":
    cli.run(main, parser(__doc__))
