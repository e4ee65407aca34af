"""The cost and quality of interpolate_video.py: memory, the pipeline's share of the time, dropped frames predicted.

python benchmarks/video.py --parts quality --data data/clips            PSNR of every other frame, dropped and predicted
python benchmarks/video.py --parts quality --data data/clips --model_name repeat average dis IFRNet_S
python benchmarks/video.py --parts memory                               peak at 1080p and 2160p, 300 and 3,000 frames
python benchmarks/video.py --parts overhead                             the whole script against the network alone, 720p

Memory is the peak of a separate process. For overhead the network and the script take turns in one process; they are
compared by wall time and by CPU time, of which only the latter is meaningful on a shared machine.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import interpolate_video
from benchmarks import store
from datasets.clips import VIDEOS
from models.baselines import interpolator, is_network
from utils import cli, io, video, video_out
from utils.metrics import bounded_psnr
from utils.motion import scale_by_motion

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"720p": (720, 1280), "1080p": (1080, 1920), "2160p": (2160, 3840)}
PEAK = """
import sys
sys.path.insert(0, {root!r})
import interpolate_video
interpolate_video.main(interpolate_video.parser().parse_args(sys.argv[1:]))
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def moving_clip(path: Path, height: int, width: int, count: int) -> Path:
    """A smooth random texture that moves by four pixels a frame, at 25 frames a second."""
    y, x = np.mgrid[:height, : width + 4 * min(count, 100)].astype(np.float32)
    rng = np.random.default_rng(0)
    planes = [sum(np.sin(x * a + y * b + c) for a, b, c in rng.uniform(0.002, 0.03, (4, 3))) for _ in range(3)]
    texture = np.clip(np.stack(planes, -1) * 30 + 128, 0, 255).astype(np.uint8)
    form = video_out.Format(width, height, Fraction(25), Fraction(1, 25))
    writer = video_out.VideoWriter(path, form)
    for i in range(count):
        k = 4 * (i % 100)
        writer.write(texture[:, k : k + width], Fraction(i, 25))
    writer.close()
    return path


def of_model(args: argparse.Namespace) -> list[str]:
    """The options of interpolate_video.py that choose the model to measure."""
    given = {name: getattr(args, name) for name in ("precision", "device")}
    given["model_name"], given["checkpoint"] = network(args)
    words = [word for name, value in given.items() if value for word in (f"--{name}", str(value))]
    return [*words, *{"fast": ["--fast"], "eager": ["--no_fast"]}.get(args.mode, [])]


def network(args: argparse.Namespace) -> tuple[str | None, str | None]:
    """The model whose memory and overhead are measured: the last network of those named, or the last baseline."""
    models = cli.asked(args)
    return ([model for model in models if is_network(model[0])] or models)[-1]


def peak(source: Path, out: Path, *words: str) -> float:
    command = [sys.executable, "-c", PEAK.format(root=str(ROOT))]
    done = subprocess.run([*command, str(source), str(out), *words], capture_output=True, text=True)
    if done.returncode < 0:  # as by a system that is short of memory; it may have said nothing
        why = f"the process whose memory is measured was killed by signal {-done.returncode}"
        raise ValueError(f"{source.name}: {why}; if memory is short, name other --parts")
    if done.returncode:
        raise ValueError(f"{source.name}: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1]) / 2**20


def memory(args: argparse.Namespace, folder: Path) -> None:
    for name, words in (("1080p", ()), *(("2160p", ("--scale", scale)) for scale in ("auto", "1", "multi"))):
        source = moving_clip(folder / f"{name}.mp4", *SIZES[name], 3)
        most = peak(source, folder / "out.mp4", "--overwrite", *words, *of_model(args))
        print(f"{name} {' '.join(words):13s} {most:.2f} GiB", flush=True)
    for count in (300, 3000):
        source = moving_clip(folder / f"{count}.mp4", 120, 160, count)
        words = ("--overwrite", "--model_name", "average")
        print(f"{count} frames of 160x120: {peak(source, folder / 'out.mp4', *words) * 1024:.0f} MiB")


def overhead(args: argparse.Namespace, folder: Path) -> None:
    source = moving_clip(folder / "720p.mp4", *SIZES["720p"], args.count)
    frames = [frame.image for frame in video.open_source(str(source)).frames()]
    call = interpolator(*network(args), args.device, precision=args.precision, mode=args.mode)
    tensors = [io.to_float(frame, call.device) for frame in frames]
    words = [str(source), str(folder / "out.mp4"), "--overwrite", *of_model(args)]

    def alone() -> None:
        for first, second in zip(tensors, tensors[1:]):
            call(first, second)
        if call.device.type == "cuda":
            torch.cuda.synchronize(call.device)

    def whole() -> None:
        interpolate_video.main(interpolate_video.parser().parse_args(words))

    alone()
    for _ in range(args.rounds):
        took = []
        for work in (alone, whole):
            clock, processor = time.perf_counter(), time.process_time()
            work()
            took.append((time.perf_counter() - clock, time.process_time() - processor))
        (clock0, processor0), (clock1, processor1) = took
        print(
            f"{args.count - 1} pairs: network {clock0:.1f} s, script {clock1:.1f} s, clock {clock1 / clock0:.3f}, "
            f"processor {processor1 / processor0:.3f}"
        )


def quality(args: argparse.Namespace, folder: Path) -> None:
    calls = {}
    models = cli.asked(args)
    names = [store.weights_name(Path(path)) if path else Path(name or "IFRNet_S").stem for name, path in models]
    for label, (name, checkpoint) in zip(names, models):
        label = label if names.count(label) == 1 else checkpoint or name
        calls[label] = interpolator(name, checkpoint, args.device, precision=args.precision, mode=args.mode)
    widths = [max(12, len(name) + 1) for name in calls]

    def show(title: str, row: Sequence[float]) -> None:
        print(f"{title:28s}" + "".join(f"{value:{width}.2f}" for value, width in zip(row, widths)), flush=True)

    print(f"{'clip':28s}" + "".join(f"{name:>{width}s}" for name, width in zip(calls, widths)))
    means = []
    for clip in args.clips:
        source = video.open_source(str(args.data / clip))
        images = [frame.image for frame in islice(source.frames(), 2 * args.count + 1)]
        if len(images) < 3:
            raise ValueError(f"{args.data / clip}: {len(images)} frames; give a clip of three or more")
        pairs = zip(images[::2], images[2::2])
        scales = [scale_by_motion(*pair) if args.scale == "auto" else args.scale for pair in pairs]
        images = [io.to_float(image) for image in images]
        row = []
        for call in calls.values():
            triplets = zip(images[::2], images[1::2], images[2::2], scales)
            pairs = ((call(a, b, scale=scale).cpu(), truth[None]) for a, truth, b, scale in triplets)
            values = [bounded_psnr(*pair).item() for pair in pairs]
            row.append(sum(values) / len(values))
        means.append(row)
        show(clip, row)
    show("mean", np.mean(means, 0))


PARTS = {"memory": memory, "overhead": overhead, "quality": quality}


def main(args: argparse.Namespace) -> None:
    if "quality" in args.parts and not args.clips:
        if not args.data.is_dir():
            raise FileNotFoundError(f"{args.data}: no such folder of clips; name one in --data, or other --parts")
        found = (path for path in args.data.iterdir() if not path.name.startswith("."))
        args.clips = sorted(path.name for path in found if path.is_dir() or path.suffix.lower() in VIDEOS)
        if not args.clips:
            raise ValueError(f"{args.data}: no clips in this folder; name another in --data, or other --parts")
    name, _ = network(args)
    if set(args.parts) - {"quality"} and not is_network(name):
        raise ValueError(f"{name}: memory and overhead are a network's; name one, or give --parts quality")
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts:
            PARTS[part](args, Path(folder))


def parser() -> cli.Parser:
    options = cli.Parser(__doc__)
    options.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)"
    )
    about = "folder of clips (quality) (default: %(default)s)"
    options.add_argument("--data", type=Path, default=cli.DATA / "clips", help=about)
    options.add_argument("--clips", nargs="+", help="videos or folders of frames in --data (default: all)")
    about = "frames to predict in each clip (quality), frames of the made clip (overhead) (default: 20)"
    options.add_argument("--count", type=cli.positive, default=20, help=about)
    about = "of flow estimation (quality): a number, multi, or auto, by motion (default: auto)"
    options.add_argument("--scale", type=cli.scale, default="auto", help=about)
    options.add_argument("--rounds", type=cli.positive, default=2, help="of overhead (default: 2)")
    cli.add_model(options, several=True, mode="auto")
    return options


if __name__ == "__main__":
    cli.run(main, parser())
