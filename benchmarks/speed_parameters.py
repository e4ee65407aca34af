"""Size and speed of networks and other methods: parameters, multiply-accumulates, seconds a frame, peak memory.

    python benchmarks/speed_parameters.py
    python benchmarks/speed_parameters.py --model_name IFRNet_S --sizes 1280x720 --minutes 10 --out results
    python benchmarks/speed_parameters.py --model_name IFRNet rife.py --sizes 1280x720
    python benchmarks/speed_parameters.py --model_name IFRNet_S --sizes 1280x720 --ablation
    python benchmarks/speed_parameters.py --compare results/speed_parameters-CPU_x86_64_2_threads.json

What is timed is one frame at t = 0.5, from two frames already on the device; at the smallest size also seven frames of
one pair ("8x"), again in seconds per frame. The frames are a photograph that moves by 100 pixels of 3840. All ways to
compute it (mode and precision) take turns, so that other load on the machine falls on all of them: trust the ratio to
float32 more than the seconds, which are the median, with the quartiles beside it. "dB" is the frame's PSNR against that
of eager float32 at the same scale, on a GPU without TF32, where there are shipped weights. MACs are those of the
convolutions, by torch's counter; the paper's "FLOPs" count the same (0.10, 0.18 and 0.71 T at 1280x720). "of matmul" is
MACs per second as a share of those of one large matrix product in half precision, timed in the same turns. Memory is
the peak of the whole process on a CPU (Linux); on a GPU what one way takes beyond weights and frames, CUDA graphs
included. There, float32 is PyTorch's default, with TF32 in the convolutions. What would take longer than --minutes is
left out and named.

A method from elsewhere (see models/external.py) is timed as it is. Its parameters are those of the modules that it
calls for a frame; MACs that it computes by kernels of its own are not counted.

--scales also times flow estimation at other scales, "multi" among them; all ratios are to float32 at scale 1.
--ablation times the parts of fast mode one by one (see ablation.py). --compare repeats the measurements of an older
result and exits with status 1 where a ratio to float32 has fallen by more than --tolerance, or was not measured: a
check for regressions that does not depend on the machine's speed. --profile shows where the time of a frame goes, for
the last way.
"""

import argparse
import math
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import torch
from torch import Tensor

import models
from benchmarks import ablation, store
from benchmarks.costs import LEAST, MATRICES, WARM_UP, counted, in_turn, macs, peak_memory, product
from benchmarks.kernel_times import ROUNDS, kernel_times, told
from benchmarks.published import SECONDS_720P
from models.baselines import External, is_network
from models.external import SUFFIX
from models.fast import best_precision
from models.interpolator import PRECISIONS, Interpolator, default_device
from utils import cli, io
from utils.metrics import bounded_psnr

SIZES = ("448x256", "1280x720", "1920x1080", "3840x2160")
PARTS = ("parts", "compiled")  # of fast mode, one by one; the same and torch.compile, which takes minutes
FRAMES_8X = 7  # of one pair
MOTION = 100 / 3840  # of the frames' width
TOLERANCE = 0.15
SECONDS = 6.0  # for the rounds of one model at one size, of which there are at least LEAST
HEADS = ("model", "size", "mode", "precision", "s/frame", "quartiles", "ratio", "of matmul", "dB", "peak MB", "V100 s")
WIDTHS = (max(map(len, models.VARIANTS)), 9, 9, 9, 8, 15, 6, 9, 5, 8, 6)


class Way(NamedTuple):
    """How frames are computed; the options of Interpolator of the same names."""

    mode: str
    precision: str
    scale: float | str = 1.0


EAGER = Way("eager", "fp32")  # what all others are compared with


def ways(device: torch.device, scales: Sequence[float | str] = ()) -> list[Way]:
    """Every mode and precision that suits a device, float32 first; then the first and the last at the other scales."""
    half = best_precision(device)
    eager = {"fp32": ("fp32",), "bf16": ("fp32", "bf16"), "fp16": ("fp32", "fp16", "bf16")}[half]
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):  # older ones emulate bf16
        eager = tuple(precision for precision in eager if precision != "bf16")
    at_1 = [*(Way("eager", precision) for precision in eager), Way("fast", half)]
    return at_1 + [way._replace(scale=scale) for scale in scales for way in (at_1[0], at_1[-1])]


def network(name: str) -> tuple[models.IFRNet, bool]:
    """A network, and whether it is trained: with the shipped weights, or fresh ones where there are none."""
    try:
        return models.load(name), True
    except FileNotFoundError:
        return models.build(name), False


def photograph_in_motion(width: int, height: int) -> list[Tensor]:
    """Two frames, (3, height, width): a photograph that fills them, and the same moved to the left."""
    import skimage.data

    photo, moved = skimage.data.coffee(), max(round(MOTION * width), 1)
    factor = max(wanted / side for wanted, side in zip((height, width + moved), photo.shape))
    sides = [math.ceil(factor * side) for side in photo.shape[:2]]
    photo = cv2.resize(photo, sides[::-1], interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
    return [io.to_float(photo[:height, left : left + width]) for left in (0, moved)]


def likeness(chosen: Sequence[Way], calls: Sequence[Callable[[], Tensor]]) -> Iterator[float | None]:
    """Each way's PSNR against eager float32 at its scale, without TF32, in dB; None for that itself and where there is
    none, 0 for frames that are not finite."""
    reference, cudnn = None, torch.backends.cudnn
    for way, call in zip(chosen, calls):
        if way[:2] == EAGER[:2]:
            before, cudnn.allow_tf32 = cudnn.allow_tf32, False
            reference = call()
            cudnn.allow_tf32 = before
            yield None
        else:
            yield None if reference is None else bounded_psnr(call(), reference).nan_to_num(0, neginf=0).mean().item()


def measure(
    name: str | External,
    size: tuple[int, int],
    chosen: list[Way],
    device: torch.device,
    seconds: float,
    parts: str | None = None,
    frames: int = 1,
    profile: bool = False,
) -> list[dict]:
    """The rows of one network, or method, at one size, one for each way. seconds: to spend on rounds, of which there
    are at least LEAST. parts: one of PARTS, for the ways of an ablation instead of those chosen. frames: of one pair.
    profile: whether the last row says where its time goes."""
    width, height = size
    pair = [frame.to(device) for frame in photograph_in_motion(width, height)]
    model, trained = network(name) if isinstance(name, str) else (None, False)
    if model is None:
        made = {EAGER: name}
    elif parts:
        made = {Way(*way): call for way, call in ablation.calls(model, device, compiled=parts == "compiled").items()}
    else:
        made = {
            way: Interpolator(model, device, way.precision, way.scale, tile="auto", mode=way.mode) for way in chosen
        }
    moments = [k / (frames + 1) for k in range(1, frames + 1)]
    chosen, calls = list(made), [partial(call, *pair, moments) for call in made.values()]
    # On a GPU before all else, see peak_memory; on a CPU once the process is warm.
    peaks = [peak_memory(call, device) for call in calls] if device.type == "cuda" else None
    half = best_precision(device)
    *times, products = in_turn([*calls, product(device, half)], device, seconds)
    peaks = peaks or [peak_memory(call, device) for call in calls]
    alike = list(likeness(chosen, calls)) if trained else [None] * len(calls)
    times = [[took / frames for took in of_way] for of_way in times]
    reference = dict(zip(chosen, times)).get(EAGER) if model else None
    pace = MATRICES[device.type] ** 3 / statistics.median(products)
    if model is None:
        about = store.method(name.path)
        each, parameters = counted(name, pair)
        work = {EAGER.scale: each}
    else:
        about, parameters = {"model": name}, sum(p.numel() for p in model.parameters())
        scales = {way.scale for way in chosen}
        work = {scale: macs(model, height, width, frames, scale) / frames for scale in scales}
    rows = []
    for way, of_way, peak, near in zip(chosen, times, peaks, alike):
        speed, comparable = spread(of_way, reference), (way.precision, way.scale) == (half, 1)
        rows.append(
            {
                **about,
                "size": f"{width}x{height}",
                "frames": frames,
                **way._asdict(),
                **speed,
                "of_matmul": work[way.scale] / speed["seconds"] / pace if comparable else None,
                "db": near,
                "peak_mb": peak,
                "macs": round(work[way.scale]),
                "parameters": parameters,
                "published": SECONDS_720P.get(name) if size == (1280, 720) and frames == 1 else None,
            }
        )
    if profile:
        rows[-1]["profile"] = kernel_times(calls[-1], device, frames)
    return rows


def spread(times: list[float], reference: list[float] | None) -> dict[str, float | None]:
    """The median and the quartiles of a way's times, and how many times as fast it is as the reference."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    ratio = statistics.median(reference) / median if reference else None
    return {"seconds": median, "low": low, "high": high, "rounds": len(times), "ratio": ratio}


def measure_all(
    args: argparse.Namespace, chosen: list[Way], methods: dict[str, External]
) -> Iterator[list[dict] | str]:
    """The rows of every model at every size, cheapest first; only the name where there is no time to measure. methods:
    those among the models, by name."""
    each = {name: macs_per_pixel(methods.get(name, name)) for name in args.model_name}
    kinds = [(1, size) for size in args.sizes]
    if not args.ablation:
        kinds.append((FRAMES_8X, min(args.sizes, key=math.prod)))
    costs = sorted((each[name] * n * w * h, name, n, (w, h)) for name in each for n, (w, h) in kinds)
    end, paces = time.monotonic() + 60 * args.minutes, {"networks": 0.0}
    for cost, name, frames, size in costs:
        method = methods.get(name)
        if method and frames > 1 and not method.any_time:
            continue
        # At least: warm-up, rounds and the calls for memory, dB and profile, at the pace measured last. A method has
        # one way, which is expected to be like the mean of a network's until it is known.
        pace = paces.get(name, paces["networks"] / len(chosen)) if method else paces["networks"]
        expected = pace * cost * (WARM_UP[args.device.type] + LEAST + 2 + args.profile * (1 + ROUNDS))
        if time.monotonic() + expected > end:
            what = f"{name} at {size[0]}x{size[1]}" + (f", {frames + 1}x" if frames > 1 else "")
            yield f"{what} (about {expected:.0f} s)"
            continue
        seconds = min(SECONDS, (end - time.monotonic()) / 4)
        # For several frames only float32 and fast mode: they take longer, and these two give the ratio.
        ends = [way for way in chosen if way[:2] == EAGER[:2] or way.mode == "fast"]
        those = chosen if frames == 1 else ends or chosen
        rows = measure(method or name, size, those, args.device, seconds, args.ablation, frames, args.profile)
        if frames == 1:
            paces[name if method else "networks"] = sum(row["seconds"] for row in rows) / cost
        yield rows


def macs_per_pixel(model: str | External) -> float:
    """What the frame between two takes, about: by its definition for a network, measured once for a method. At least
    one, as a method may compute all by means that are not counted."""
    if isinstance(model, str):
        return macs(models.build(model), 64, 64) / 64**2
    return max(counted(model, photograph_in_motion(256, 256))[0] / 256**2, 1)


def table(rows: list[dict], head: bool = True) -> str:
    """Rows as text, under their heads."""
    lines, modes = [HEADS] if head else [], max([WIDTHS[2], *(len(store.mode(row)) for row in rows)])
    widths = (*WIDTHS[:2], modes, *WIDTHS[3:])
    forms = {"ratio": ".2f", "of_matmul": ".0%", "db": ".1f", "peak_mb": ".0f", "published": ".3f"}
    for row in rows:
        names = (row["model"], row["size"], store.mode(row), row["precision"])
        quartiles = f"{row['low']:.4f}-{row['high']:.4f}"
        others = ("-" if row[name] is None else format(row[name], form) for name, form in forms.items())
        lines.append((*names, f"{row['seconds']:.4f}", quartiles, *others))
    return "\n".join(" ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)).rstrip() for line in lines)


def size_of(row: dict, digits: int) -> str:
    """A model's parameters and multiply-accumulates as text."""
    tera = f"{row['macs'] / 1e12:.{digits}f} T MACs at {row['size']}"
    return f"{row['model']:{WIDTHS[0]}s} {row['parameters']:11,d} parameters, {tera}"


def ratios(rows: list[dict]) -> dict[tuple, float]:
    """A result's ratios to float32, without float32's own, by (model, size, mode, precision)."""
    others = [row for row in rows if row.get("ratio") is not None and (store.mode(row), row["precision"]) != EAGER[:2]]
    return {(row["model"], row["size"], store.mode(row), row["precision"]): row["ratio"] for row in others}


def compared(rows: list[dict], older: list[dict], tolerance: float) -> tuple[str, list[str]]:
    """The ratios to float32 of two results as text, and the names of those that fell by more than the share tolerance.

    ValueError where the two have nothing in common.
    """
    now, then = ratios(rows), ratios(older)
    shared = [key for key in now if key in then]
    if not shared:
        raise ValueError("there is nothing to compare: no row of the older result was measured in this run")
    fallen = [" ".join(key) for key in shared if now[key] < (1 - tolerance) * then[key]]
    lines = ["speed as a multiple of float32's, then and now:"]
    lines += [
        f"{' '.join(key):40s} {then[key]:6.2f} {now[key]:6.2f} {now[key] / then[key] - 1:+7.1%}" for key in shared
    ]
    return "\n".join(lines), fallen


def to_compare(path: Path, args: argparse.Namespace) -> list[dict]:
    """The rows of an older result; `args` is set to measure its networks, sizes and scales again, not its methods,
    which have no ratio. ValueError for a file of another kind or without ratios, and for options that say what to
    measure."""
    for name in ("model_name", "sizes", "scales", "precision"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name}: {path} determines what is measured; leave the option out")
    older = store.read(path)
    if older["benchmark"] != store.SPEED or not ratios(older["rows"]):
        raise ValueError(f"{path}: holds no ratio to float32; give a result that was measured without --precision")
    modes = {row["mode"] for row in older["rows"]}
    if modes - {"eager", "fast"}:
        args.ablation = args.ablation or ("compiled" if ablation.COMPILED in modes else "parts")
    args.model_name = list(dict.fromkeys(model for model, *_ in ratios(older["rows"])))
    args.sizes = list(dict.fromkeys(size(row["size"]) for row in older["rows"]))
    args.scales = list(dict.fromkeys(scale for row in older["rows"] if (scale := row["scale"]) != 1))
    return older["rows"]


def settle(args: argparse.Namespace) -> list[Way]:
    """The ways to measure; sets the options that were left out. ValueError for options that do not go together."""
    args.model_name = args.model_name or list(models.VARIANTS)
    args.sizes = args.sizes or list(map(size, SIZES))
    args.scales = args.scales or ()
    args.device = args.device or default_device()
    methods = [name for name in args.model_name if not is_network(name)]
    if args.ablation and methods:
        raise ValueError(f"--ablation: times the parts of networks; leave it out, or {methods[0]}")
    if args.scales and len(methods) == len(args.model_name):
        raise ValueError(f"--scales {args.scales[0]}: has no effect on {methods[0]}; leave it out, or name a network")
    if args.ablation and args.scales:
        raise ValueError(f"--scales {args.scales[0]}: --ablation measures at scale 1; leave one of the two out")
    if args.ablation and args.precision:
        raise ValueError(f"--precision {args.precision}: --ablation sets its own; leave one of the two out")
    if "auto" in args.scales:
        raise ValueError("--scales auto: stands for a number that depends on the frames; give numbers or multi")
    scales = [scale for scale in dict.fromkeys(args.scales) if scale != 1]
    suitable = ways(args.device, scales)
    chosen = [way for way in suitable if args.precision in (None, way.precision)]
    if not chosen:
        known = ", ".join(dict.fromkeys(way.precision for way in suitable))
        raise ValueError(f"--precision {args.precision}: not measured on this {args.device.type}; give one of {known}")
    return chosen


def check_regressions(rows: list[dict], older: list[dict], tolerance: float) -> None:
    """Print the ratios of both results; ends the program with status 1 where one has fallen or was not measured."""
    text, fallen = compared(rows, older, tolerance)
    print(text)
    again = ratios(rows)
    missed = [" ".join(key) for key in ratios(older) if key not in again]
    for what, names in (("slower than before", fallen), ("not measured this time", missed)):
        if names:
            print(f"{what}: {', '.join(names)}", file=sys.stderr)
    if fallen or missed:
        sys.exit(1)


def main(args: argparse.Namespace) -> None:
    older = to_compare(args.compare, args) if args.compare else None
    if args.tolerance is not None and older is None:
        raise ValueError(f"--tolerance {args.tolerance:g}: has no effect without --compare; give both, or neither")
    chosen = settle(args)
    io.check_writable(args.out)
    methods = {name: External(name, args.device) for name in args.model_name if not is_network(name)}
    name = store.device_name(args.device, threads=True)
    for network in map(models.build, filter(is_network, args.model_name)):
        count, work = sum(p.numel() for p in network.parameters()), macs(network, 720, 1280)
        print(size_of({"model": network.name, "parameters": count, "macs": work, "size": "1280x720"}, digits=2))
    print(f"{name}, PyTorch {torch.__version__}")
    result = {
        "benchmark": store.SPEED,
        "device": name,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "command": shlex.join(["python", *sys.argv]),
        "rows": [],
        "left_out": [],
    }
    if methods:  # other ones may have files of the same names
        result["code_sha256"] = [io.sha256(method.path) for method in methods.values()]
    path = free(store.place(args.out, file_stem(args, name), result), args.compare)
    for rows in measure_all(args, chosen, methods):
        if isinstance(rows, str):
            result["left_out"].append(rows)
            continue
        print(table(rows, head=not result["rows"]), flush=True)
        if "code" in rows[0] and rows[0]["frames"] == 1:
            print(size_of(rows[0], digits=4), flush=True)
        if args.profile:
            print(told(rows[-1]["profile"]), flush=True)
        result["rows"] += rows
        store.write(path, result)  # after each, so that no measurement is lost
    if not result["rows"]:
        raise ValueError(f"--minutes {args.minutes:g}: not enough to measure anything; give more, or fewer --sizes")
    store.write(path, result)
    if result["left_out"]:
        print(f"left out to stay within --minutes {args.minutes:g}: {', '.join(result['left_out'])}")
    print(f"wrote {path}")
    if older is not None:
        check_regressions(result["rows"], older, TOLERANCE if args.tolerance is None else args.tolerance)


def file_stem(args: argparse.Namespace, device: str) -> str:
    """The name of a result's file: it says what was measured, unless that is everything."""
    marks = [store.SPEED, "ablation"] if args.ablation else [store.SPEED]
    marks += [] if args.model_name == list(models.VARIANTS) else [Path(name).stem for name in args.model_name]
    marks += [] if args.sizes == list(map(size, SIZES)) else [f"{width}x{height}" for width, height in args.sizes]
    marks += [f"scale{scale}" for scale in args.scales] + ([args.precision] if args.precision else [])
    return "-".join([*marks, re.sub("[^A-Za-z0-9]+", "_", device)])


def free(path: Path, taken: Path | None) -> Path:
    """The path, or one beside it where it is that of the older result, which must not be overwritten."""
    same = taken is not None and path.resolve() == taken.resolve()
    return path.with_stem(f"{path.stem}-again") if same else path


def size(text: str) -> tuple[int, int]:
    """The type of --sizes: WIDTHxHEIGHT."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give WIDTHxHEIGHT, each 16 or more, as 1280x720")
    return int(width), int(height)


def model(text: str) -> str:
    """The type of --model_name: a network, or the file of a method."""
    if not is_network(text) and not text.endswith(SUFFIX):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither {', '.join(models.VARIANTS)} nor the .py file of a method"
        )
    return text


def parser() -> cli.Parser:
    options = cli.Parser(__doc__)
    about = f"{', '.join(models.VARIANTS)}, or .py files with interpolate(img0, img1, t) (default: our networks)"
    options.add_argument("--model_name", nargs="+", type=model, help=about)
    options.add_argument("--sizes", nargs="+", type=size, help=f"of the frames (default: {' '.join(SIZES)})")
    options.add_argument("--scales", nargs="+", type=cli.scale, help="of flow estimation, besides 1: 0.5, multi, ..")
    options.add_argument("--precision", choices=PRECISIONS, help="only this one (default: all that suit)")
    options.add_argument("--ablation", nargs="?", choices=PARTS, const="parts", help="time fast mode part by part")
    options.add_argument("--profile", action="store_true", help="show where the time of the last row goes")
    options.add_argument("--compare", type=Path, metavar="JSON", help="an older result to measure again")
    options.add_argument("--tolerance", type=cli.amount, help=f"share by which a ratio may fall (default: {TOLERANCE})")
    options.add_argument("--minutes", type=cli.amount, default=2.5, help="for the whole run (default: 2.5)")
    about = "folder of the result (default: %(default)s)"
    options.add_argument("--out", type=Path, default=store.RESULTS, help=about)
    cli.add_device(options)
    return options


if __name__ == "__main__":
    cli.run(main, parser())
