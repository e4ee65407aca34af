"""How fast a training run reads or makes its samples, how fast it steps, and whether one waits for the other.

    python benchmarks/training_throughput.py
    python benchmarks/training_throughput.py --model_name IFRNet --batch_size 24 --crop 224
    python benchmarks/training_throughput.py --parts loader
    python benchmarks/training_throughput.py --parts scenes --batch_size 64

It makes triplets of Vimeo90K's size (448x256, three PNGs and two .flo each) out of scikit-image's photographs, so that
a sample costs what it costs in training; they are read again and again, so the disk is not measured. Scenes are those
of train_synthetic.py, made on the device that trains, several batches at once. Every number but "together" is the best
of several rounds in which all candidates took turns. Reading, and work on a CPU, are in CPU seconds, which other load
on the machine does not change; for steps set OMP_NUM_THREADS=1, as threads that wait for each other count too. Work on
a GPU, and "together", are in wall time. --profile shows where the time of making scenes and of a step goes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

import cv2
import imageio.v2 as imageio
import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

import models
from benchmarks import store
from benchmarks.kernel_times import kernel_times, told
from datasets import Sample, effects, synthetic
from datasets.packed import Packed, Resident, pack
from datasets.synthetic import GROUP
from datasets.transforms import Augment, finish
from datasets.vimeo90k import FLOW, FRAMES, TRAIN_LIST, Vimeo90K, read_list
from losses import ifrnet_loss
from models.interpolator import default_device
from utils import cli, epochs, flow_files, io
from utils.batches import Order, on_device, read
from utils.meter import Meter
from utils.step import Recipe, State, parallel, step

SIZE = (256, 448)  # of Vimeo90K
PAPER = 641_400 * 24  # samples of the 300-epoch recipe
PARTS = ("scenes", "loader", "step", "both")
MEASURES = (  # that speed up a step, each added to those before it
    ("eager float32, contiguous", {}),
    ("+ channels_last", {"channels_last": True}),
    ("+ bfloat16", {"amp": "bf16"}),
    ("+ compiled", {"compile": True}),
)


class PublishedWay(Dataset):
    """A sample as the published code reads it: three PNGs and two .flo files read whole, then resized, cropped and
    augmented on the CPU, float32 at the end."""

    def __init__(self, root: Path, names: list[str], crop: int):
        self.root, self.names, self.crop, self.rng = root, names, crop, np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        name, rng, size = self.names[index], self.rng, self.crop
        frames = [imageio.imread(self.root / "sequences" / name / frame) for frame in FRAMES]
        flow = np.concatenate([flow_files.read_flo(self.root / "flow" / name / f"{stem}.flo") for stem in FLOW], 2)
        flow = flow.astype(np.float64)  # as its arithmetic leaves it
        if rng.random() < 0.1:
            frames = [cv2.resize(frame, None, fx=2, fy=2) for frame in frames]
            flow = 2 * cv2.resize(flow, None, fx=2, fy=2)
        top, left = (int(rng.integers(side - size + 1)) for side in frames[0].shape[:2])
        frames = [frame[top : top + size, left : left + size] for frame in frames]
        flow = flow[top : top + size, left : left + size]
        if rng.random() < 0.5:
            frames = [frame[..., ::-1] for frame in frames]
        if rng.random() < 0.3:
            frames, flow = [frame[::-1] for frame in frames], flow[::-1] * [1, -1, 1, -1]
        if rng.random() < 0.5:
            frames, flow = [frame[:, ::-1] for frame in frames], flow[:, ::-1] * [-1, 1, -1, 1]
        if rng.random() < 0.05:
            frames, flow = [frame.transpose(1, 0, 2) for frame in frames], flow.transpose(1, 0, 2)[..., [1, 0, 3, 2]]
        if rng.random() < 0.5:
            frames, flow = frames[::-1], flow[..., [2, 3, 0, 1]]
        tensors = [torch.from_numpy(frame.transpose(2, 0, 1).astype(np.float32) / 255.0) for frame in frames]
        return *tensors, torch.from_numpy(flow.transpose(2, 0, 1).astype(np.float32))


def make_set(root: Path, count: int) -> Path:
    """Triplets of moving photographs with smooth flow, in the layout and the compression of the download."""
    rng = np.random.default_rng(0)
    photos = [p for p in synthetic.skimage_photographs() if p.shape[0] > SIZE[0] + 8 and p.shape[1] > SIZE[1] + 8]
    names = [f"00001/{k + 1:04}" for k in range(count)]
    for k, name in enumerate(names):
        photo = photos[k % len(photos)]
        top, left = (int(rng.integers(4, side - inner - 4)) for side, inner in zip(photo.shape, SIZE))
        folder = root / "sequences" / name
        folder.mkdir(parents=True)
        for shift, frame in zip((-2, 0, 2), FRAMES):
            # Pillow's default compression, about that of the download; OpenCV's would be decoded faster.
            imageio.imwrite(folder / frame, photo[top : top + SIZE[0], left + shift : left + shift + SIZE[1]])
        for sign, stem in zip((-1, 1), FLOW):
            flow = sign * np.float32([2, 0]) + rng.normal(0, 0.01, (*SIZE, 2)).astype(np.float32)
            flow_files.write_flow(root / "flow" / name / f"{stem}.flo", flow)
    (root / TRAIN_LIST).write_text("\n".join(names))
    return root


def best_of(candidates: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The best of each candidate; they take turns, so that other load on the machine disturbs all alike."""
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, measure in candidates.items():
            best[name] = min(best[name], measure())
    return best


def seconds_of(call: Callable[[], None], device: torch.device, wall: bool) -> float:
    """How long a call takes, until the device has finished too: wall time, or CPU time of this process."""
    clock = time.perf_counter if wall else time.process_time
    start = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def loaders(root: Path, packed: Path, args: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """For every way to read: its time per sample, samples per second, and speed relative to the published way."""
    names, batch = read_list(root), args.batch_size
    augment = Augment(args.crop, 0)
    published = PublishedWay(root, names, args.crop)
    files, rows = Vimeo90K(root, names, augment), Packed(packed, names, augment)
    collated = {
        "PNG, the published way": lambda keys: default_collate([published[index] for index, _ in keys]),
        "PNG": lambda keys: default_collate([files[key] for key in keys]),
        "packed": rows.batch,
        "packed, and augmented on this device": lambda keys: finish(rows.batch(keys), device),
    }
    if device.type == "cuda":
        resident = Resident(rows, device)
        collated["packed, in GPU memory, augmented there"] = lambda keys: finish(resident.batch(keys), device)

    def measure(name: str, way: Callable, order: Iterator) -> float:
        batches = [next(order) for _ in range(max(args.loader_samples // batch, 1))]

        def read_all() -> None:
            for keys in batches:
                way(keys)

        # CPU time for what separate reading processes do, wall time for what the GPU does.
        spent = seconds_of(read_all, device, wall=device.type == "cuda" and "augmented" in name)
        return spent / (len(batches) * batch)

    candidates = {name: partial(measure, name, way, iter(Order(len(names), batch))) for name, way in collated.items()}
    seconds = best_of(candidates, args.rounds)
    first = next(iter(seconds.values()))
    return {name: {"ms": 1e3 * s, "samples_per_s": 1 / s, "times": first / s} for name, s in seconds.items()}


class Run:
    """A network that trains on a stream of batches."""

    def __init__(self, args: argparse.Namespace, device: torch.device, measures: dict, stream: Iterator):
        torch.manual_seed(0)
        self.state = State(models.build(args.model_name), Recipe(iterations=10**6, **measures), device)
        self.network = parallel(self.state)
        self.loss = lambda out, batch, progress: ifrnet_loss(out, batch.imgt, batch.flow)
        self.meter = Meter(device)
        self.stream = self.meter.timed(stream)

    def seconds(self, steps: int) -> float:
        """Of one step, the mean of `steps` of them."""
        self.meter.restart()
        spent = time.process_time()
        for _ in range(steps):
            self.meter.add(*step(self.network, self.state, self.stream, self.loss, 0.0))
        self.meter.norm.item()  # waits for the device
        self.took, spent = time.monotonic() - self.meter.begun, time.process_time() - spent
        return (self.took if self.state.device.type == "cuda" else spent) / steps

    @property
    def waiting(self) -> float:
        return self.meter.waited / self.took


def steps(root: Path, args: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """Seconds per step on a batch that is on the device already, each of MEASURES added in turn."""
    data = Vimeo90K(root, read_list(root), Augment(args.crop, 0))
    keys = next(iter(Order(len(data), args.batch_size)))
    batch = finish(default_collate([data[key] for key in keys]), device)
    runs, measures = {}, {}
    for name, added in MEASURES:
        measures |= added
        if "compile" in added and args.no_compile:
            continue
        run = Run(args, device, measures, itertools.repeat(batch))
        run.seconds(args.warm_up)
        runs[name] = run
    seconds = best_of({name: lambda run=run: run.seconds(args.steps) for name, run in runs.items()}, args.rounds)
    first = next(iter(seconds.values()))
    return {
        name: {
            "s": s,
            "samples_per_s": args.batch_size / s,
            "times": first / s,
            "recipe_hours": PAPER * s / args.batch_size / 3600,
            **profiled(partial(runs[name].seconds, args.steps), args.steps, args, device),
        }
        for name, s in seconds.items()
    }


def together(root: Path, packed: Path, args: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """Reading and stepping at once, with all measures: samples a second, and the share of time spent waiting."""
    measures = {key: value for _, added in MEASURES for key, value in added.items()}
    if args.no_compile:
        del measures["compile"]
    names, augment = read_list(root), Augment(args.crop, 0)
    sets = {"PNG": Vimeo90K(root, names, augment), "packed": Packed(packed, names, augment)}
    if device.type == "cuda":
        sets["packed, in GPU memory"] = Resident(sets["packed"], device)
    results = {}
    for name, data in sets.items():
        reader = read(data, Order(len(names), args.batch_size), args.workers, pin=device.type == "cuda")
        run = Run(args, device, measures, on_device(reader, finish, device))
        run.seconds(args.warm_up)
        count = args.steps * args.rounds
        run.seconds(count)
        s = run.took / count
        results[name] = {"samples_per_s": args.batch_size / s, "waiting": run.waiting}
    return results


def scenes(args: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """Seconds to make a batch of procedural scenes with all effects, to step on one that exists, and to do both.
    Batches come in groups, as in train_synthetic.py, and whole groups are timed."""
    material = synthetic.material(procedural=0.5).to(device)
    source = synthetic.Synthetic(material, (args.crop, args.crop), blur=effects.BLUR)
    finishing = effects.Effects(1.0, material.stencils, source.random)
    groups = (finishing(source.batch(GROUP * args.batch_size, any_time=True)) for _ in itertools.count())
    stream = (Sample(*(x[k::GROUP] for x in group)) for group in groups for k in range(GROUP))
    count = -(-args.steps // GROUP) * GROUP
    measures = {"channels_last": True, "amp": "bf16", "ema": 0.999, "clip_grad": 1.0}  # of train_synthetic.py
    one = [next(stream) for _ in range(GROUP)][0]
    alone, both = (Run(args, device, measures, batches) for batches in (itertools.repeat(one), stream))

    def make() -> None:
        for _ in range(count):
            next(stream)

    def making() -> float:
        return seconds_of(make, device, wall=device.type == "cuda") / count

    timed = {"making": making, "a step": lambda: alone.seconds(count), "both": lambda: both.seconds(count)}
    best_of(timed, 1)  # to warm up
    seconds = best_of(timed, args.rounds)
    return {
        name: {
            "s": s,
            "samples_per_s": args.batch_size / s,
            "share": s / seconds["both"],
            **profiled(timed[name], count, args, device),
        }
        for name, s in seconds.items()
    }


def profiled(call: Callable[[], object], count: int, args: argparse.Namespace, device: torch.device) -> dict:
    """With --profile, where a batch's time goes, in a call that processes `count` of them."""
    return {"profile": kernel_times(call, device, count)} if args.profile else {}


def main(args: argparse.Namespace) -> None:
    device = args.device or default_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    io.check_writable(args.out)
    args.crop = args.crop or (224 if device.type == "cuda" else 128)
    if args.crop > min(SIZE) and set(args.parts) - {"scenes"}:
        raise ValueError(f"--crop {args.crop}: triplets have {min(SIZE)} rows; give that or less, or --parts scenes")
    args.batch_size = args.batch_size or (24 if device.type == "cuda" else 8)
    args.warm_up = 5 if device.type == "cuda" else 1
    cv2.setNumThreads(0)
    what = store.device_name(device, threads=True)
    print(f"{what}, torch {torch.__version__}; {args.model_name}, batch {args.batch_size}, crop {args.crop}")
    result = {"benchmark": store.THROUGHPUT, "torch": torch.__version__}
    result |= {name: str(value) for name, value in vars(args).items()} | {"device": what}
    if "scenes" in args.parts:
        result["scenes"] = scenes(args, device)
        row = "{s:8.4f} s a batch {samples_per_s:9.0f} samples a second {share:7.1%} of both"
        table("scenes", result["scenes"], row)
        if device.type == "cuda":
            print(f"  {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB at most")
    if set(args.parts) - {"scenes"}:
        with_triplets(args, device, result)
    path = args.out / f"{store.THROUGHPUT}.json"
    store.write(path, result)
    print(f"wrote {path}")


def with_triplets(args: argparse.Namespace, device: torch.device, result: dict) -> None:
    """Measure the parts that need triplets; adds them to `result`."""
    with tempfile.TemporaryDirectory() as folder:
        root, packed = make_set(Path(folder) / "png", max(args.samples, args.batch_size)), Path(folder) / "packed"
        pack(Vimeo90K(root, read_list(root)), packed, workers=1)
        if "loader" in args.parts:
            result["loader"] = loaders(root, packed, args, device)
            row = "{ms:9.2f} ms a sample {samples_per_s:9.0f} a second {times:7.1f} x"
            table("reading alone", result["loader"], row)
        if "step" in args.parts:
            result["step"] = steps(root, args, device)
            row = "{s:8.3f} s a step {samples_per_s:8.1f} samples a second {times:6.2f} x "
            row += "{recipe_hours:8.0f} h a recipe"
            table("stepping alone", result["step"], row)
        if "both" in args.parts:
            result["both"] = together(root, packed, args, device)
            row = "{samples_per_s:9.1f} samples a second {waiting:7.1%} of the time waiting"
            table("together", result["both"], row)


def table(title: str, rows: dict[str, dict], form: str) -> None:
    print(f"\n{title}")
    for name, values in rows.items():
        print(f"  {name:40}" + form.format(**values))
        if "profile" in values:
            print(told(values["profile"]))


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--model_name", choices=models.VARIANTS, default="IFRNet_S", help="network (default: %(default)s)")
    add("--batch_size", type=cli.positive, help="samples a step (default: 24 on a GPU, 8 on a CPU)")
    add("--crop", type=epochs.crop, help="side of the crops, a multiple of 16 (default: 224 on a GPU, 128 on a CPU)")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    add("--samples", type=cli.positive, default=64, help="triplets to make (default: %(default)s)")
    add("--loader_samples", type=cli.positive, default=64, help="samples read in a round (default: %(default)s)")
    add("--steps", type=cli.positive, default=4, help="steps in a round; scenes: whole groups (%(default)s)")
    add("--rounds", type=cli.positive, default=5, help="rounds, of which the best counts (default: %(default)s)")
    add("--workers", type=cli.whole, default=2, help="reading processes of part both (%(default)s)")
    add("--profile", action="store_true", help="show where the time of scenes and steps goes")
    add("--no_compile", action="store_true", help="leave torch.compile out, which takes minutes on a CPU")
    add("--out", type=Path, default=store.RESULTS, help="folder of the result (default: %(default)s)")
    cli.add_device(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, parser())
