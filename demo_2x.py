"""Make the frame half-way between two frames, an animation of the three, and an overlay of both inputs.

    python demo_2x.py
    python demo_2x.py --img0 a.png --img1 b.png --out out --model_name IFRNet --checkpoint IFRNet_Vimeo90K.pth

By default flow is estimated at several scales, for both large motion and fine detail: see --scale.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.baselines import interpolator
from models.interpolator import scales_for
from utils import cli, io
from utils.motion import scale_by_motion

FIGURES = Path(__file__).resolve().parent / "figures"


def parser(doc: str) -> cli.Parser:
    options = cli.Parser(doc)
    options.add_argument("--img0", type=Path, help="frame at t = 0 (default: of a sample pair)")
    options.add_argument("--img1", type=Path, help="frame at t = 1 (default: of a sample pair)")
    options.add_argument("--out", type=Path, default=Path("out"), help="folder to write to (default: out)")
    about = "scale of flow estimation; auto: by motion; multi (default): several, blended pixel by pixel"
    options.add_argument("--scale", type=cli.scale, default="multi", help=about)
    cli.add_model(options, mode="auto")
    return options


def between(args: argparse.Namespace, times: Sequence[float], written: Sequence[str]) -> np.ndarray:
    """Both input frames with those at `times` between them, (2 + T, H, W, 3) uint8; prints the time it took.

    written: names of the pictures that the demo writes to --out; none may be an input.
    """
    pair = args.img0, args.img1
    if pair.count(None) == 1:
        raise ValueError(f"{args.img0 or args.img1}: --img0 and --img1 are a pair; give both")
    io.check_writable(args.out)
    for path in filter(None, pair):
        if path.resolve() in [(args.out / name).resolve() for name in written]:
            raise ValueError(f"{path}: would be overwritten; give another --out")
    first, last = io.read_frames([FIGURES / "img0.png", FIGURES / "img1.png"] if None in pair else pair)
    height, width = first.shape[:2]
    if min(height, width) < 2:
        raise ValueError(f"{args.img0}: {width}x{height}; frames of 2x2 pixels or more are needed")
    scale = scale_by_motion(first, last) if args.scale == "auto" else args.scale
    options = {"precision": args.precision, "scale": scale, "mode": args.mode}
    pixels = len(times) * height * width * sum(each**2 for each in scales_for(height, width, scale))
    call = interpolator(args.model_name, args.checkpoint, args.device, **options, pixels=pixels)
    start = time.perf_counter()
    frames = io.to_uint8(call(io.to_float(first), io.to_float(last), times))
    seconds = time.perf_counter() - start
    print(f"{len(times)} frame{'s' * (len(times) > 1)} of {width}x{height} in {seconds:.2f} s on {call.device}")
    if (args.mode, call.mode) == ("fast", "eager"):
        print("      without --fast, which takes longer to start than these frames need")
    return np.concatenate([first[None], frames, last[None]])


def main(args: argparse.Namespace) -> None:
    frames = between(args, [0.5], ["demo_2x.png", "demo_2x_overlay.png"])
    overlay = np.round((frames[0].astype(np.float32) + frames[2]) / 2).astype(np.uint8)
    io.write_image(args.out / "demo_2x.png", frames[1])
    io.write_image(args.out / "demo_2x_overlay.png", overlay)
    io.write_gif(args.out / "demo_2x.gif", frames, seconds=0.3)
    print(f"wrote the frame to {args.out / 'demo_2x.png'}, the overlaid input to {args.out / 'demo_2x_overlay.png'},")
    print(f"      the animation to {args.out / 'demo_2x.gif'}")


if __name__ == "__main__":
    cli.run(main, parser(__doc__))
