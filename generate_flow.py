"""Teacher flow for a set of triplets in the layout of Vimeo90K: flow/00001/0001/flow_t0.flo and flow_t1.flo.

    python generate_flow.py                                        data/vimeo_triplet, the best available teacher
    python generate_flow.py --teacher raft_large --format png      an eighth of the bytes
    python generate_flow.py --teacher liteflownet --weights network-default.pytorch --split all
    torchrun --nproc_per_node=4 generate_flow.py --teacher raft_large
    python generate_flow.py --check 16                             how good are the labels in flow/?
    python generate_flow.py --check 16 --teacher raft_large        how good would this teacher's labels be?

To continue an interrupted run, type the same command: complete files are kept, broken ones are made again, also those
of another size than the frames. Where frames have changed and kept their size, remove their flow first. Decoding, flow
estimation and writing overlap. The files do not depend on the number of processes or on interruptions, because batches
are always cut from the list in the same way; on a CPU they do depend on the number of threads (OMP_NUM_THREADS).

Formats, per file: flo, 8 bytes a pixel; f16, 4 bytes, within 1/128 pixel up to 32 pixels; png (KITTI), about 1 byte,
within 1/128 pixel. Read from memory, png takes ten times as long as flo; from a disk below 350 MB/s, less time.
Every data set of this project reads all of them.
"""

import argparse
import json
import operator
import shutil
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.vimeo90k import FLOW, FRAMES, RECORD, TEST_LIST, TRAIN_LIST, Vimeo90K, check_size, find_flow, read_list
from models import flow as teachers
from utils import batches, cli, distributed, flow_files, flow_report, io

LISTS = {"train": [TRAIN_LIST], "test": [TEST_LIST], "all": [TRAIN_LIST, TEST_LIST]}


class Format(NamedTuple):
    bytes: float  # per pixel of one flow; for png, which is compressed, an upper estimate
    reach: float  # pixels; larger flow is marked as unknown


FLO = "flo"
FORMATS = {
    FLO: Format(8, np.inf),
    "png": Format(2, flow_files.KITTI_REACH),
    "f16": Format(4, flow_files.F16_REACH),
}


class Group(NamedTuple):
    """Triplets of one size from one batch. frames: RGB uint8 (N, 3, H, W, 3); missing: whether each lacks its flow."""

    names: list[str]
    missing: list[bool]
    frames: Tensor


class Batches(Dataset):
    """The list in batches, each as its Groups; groups whose triplets all have their flow are left out."""

    def __init__(self, root: Path, names: list[str], size: int, ending: str):
        self.triplets, self.size, self.ending = Vimeo90K(root, names, flow=False), size, ending

    def __len__(self) -> int:
        return -(-len(self.triplets) // self.size)

    def indices(self, number: int) -> range:
        return range(len(self.triplets))[number * self.size : (number + 1) * self.size]

    def __getitem__(self, number: int) -> tuple[int, list[Group]]:
        """The batch's number of triplets, and its groups with flow to make."""
        indices = self.indices(number)
        names = [self.triplets.names[index] for index in indices]
        missing = [not self._whole(name) for name in names]
        if not any(missing):
            return len(names), []
        sizes: dict[tuple, list] = {}
        for index, name, absent in zip(indices, names, missing):
            frames = self.triplets.stack(index).frames
            sizes.setdefault(frames.shape, []).append((name, absent, torch.from_numpy(frames)))
        columns = [zip(*members) for members in sizes.values()]
        groups = [Group(list(names), list(missing), torch.stack(frames)) for names, missing, frames in columns]
        return len(indices), [group for group in groups if any(group.missing)]

    def _whole(self, name: str) -> bool:
        """Whether both flow files can be read and have the size of the frames."""
        root = self.triplets.root
        try:
            size = io.png_size(root / "sequences" / name / FRAMES[0])
            return all(flow_files.read_flow(path).shape[:2] == size for path in flow_paths(root, name, self.ending))
        except (OSError, ValueError):
            return False


def flow_paths(root: Path, name: str, ending: str) -> list[Path]:
    return [root / "flow" / name / f"{stem}.{ending}" for stem in FLOW]


def write(root: Path, name: str, ending: str, flow: np.ndarray) -> tuple[int, int]:
    """Both files of a triplet, flow (H, W, 4); returns the bytes and the number of pixels marked as unknown."""
    unknown = ~(np.abs(flow) <= FORMATS[ending].reach)
    size = 0
    for path, part in zip(flow_paths(root, name, ending), np.split(np.where(unknown, np.nan, flow), 2, axis=2)):
        io.clear_left(path)
        flow_files.write_flow(path, part)
        size += path.stat().st_size
    return size, int(unknown.any(2).sum())


def generate(args: argparse.Namespace, names: list[str], teacher: teachers.Teacher, device: torch.device) -> None:
    dataset = Batches(args.data, names, args.batch_size, args.format)
    share = distributed.shard([[number] for number in range(len(dataset))])
    counts = {"made": 0, "bytes": 0, "unknown": 0, "there": 0}
    writing: deque[Future] = deque()
    started = time.perf_counter()

    def settle(most: int) -> None:
        while len(writing) > most:
            size, unknown = writing.popleft().result()
            counts["made"] += 1
            counts["bytes"] += size
            counts["unknown"] += unknown

    total = sum(len(dataset.indices(number)) for (number,) in share)
    show = sys.stderr.isatty() and distributed.is_main()
    bar = tqdm(total=total, unit="triplet", dynamic_ncols=True, disable=not show)
    with bar, ThreadPoolExecutor(max(args.workers, 1)) as writers:
        loader = batches.load(dataset, share, args.workers, collate=operator.itemgetter(0))
        for count, groups in loader:
            for group in groups:
                img0, imgt, img1 = io.to_float(group.frames.numpy(), device).unbind(1)
                flow = teachers.labels(teacher, img0, imgt, img1).movedim(1, -1).cpu().numpy()
                for name, missing, one in zip(group.names, group.missing, flow):
                    if missing:
                        writing.append(writers.submit(write, args.data, name, args.format, one))
            counts["there"] += count - sum(sum(group.missing) for group in groups)
            settle(8 * args.batch_size)  # a slow disk then holds up the teacher instead of filling the memory
            bar.update(count)
        settle(0)
    counts = distributed.sums(counts)
    if distributed.is_main():
        report(args.data, counts, time.perf_counter() - started)


def report(root: Path, counts: dict[str, float], seconds: float) -> None:
    made = int(counts["made"])
    print(f"{root / 'flow'}: {int(counts['there'])} triplets had their flow, {made} were made", end="")
    if made:
        print(f" in {seconds:.0f} s ({made / seconds:.1f} triplets/s), {amount(counts['bytes'])}", end="")
    print()
    if counts["unknown"]:
        print(f"{int(counts['unknown'])} pixels had flow that is not finite or beyond the format: marked as unknown")


def amount(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def check_space(root: Path, names: list[str], ending: str) -> None:
    """Print how much disk space the job needs. OSError if there is less."""
    paths = (flow_paths(root, name, ending) for name in names)
    missing = [name for name, both in zip(names, paths) if not all(path.is_file() for path in both)]
    if not missing:
        return
    some = missing[:: -(-len(missing) // 16)]  # the sizes of all would take minutes on a slow disk
    pixels = np.mean([io.read_image(root / "sequences" / name / FRAMES[1])[..., 0].size for name in some])
    needed = len(missing) * len(FLOW) * (12 + FORMATS[ending].bytes * pixels)
    folder = root / "flow"
    free = shutil.disk_usage(folder if folder.is_dir() else root).free  # the flow folder may be a link to another disk
    print(
        f"{len(missing)} of {len(names)} triplets to do: about {amount(needed)} of .{ending}, {amount(free)} are free"
    )
    if needed > free:
        smaller = [name for name in FORMATS if FORMATS[name].bytes < FORMATS[ending].bytes]
        way = f"; --format {' or '.join(smaller)} takes less" if smaller else ""
        raise OSError(f"{root}: {amount(needed)} of flow do not fit into the {amount(free)} that are free{way}")


def read_record(folder: Path) -> dict:
    """What made the labels of a folder; empty if the folder has no record."""
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise ValueError(f"{path}: not readable as JSON; remove it if one teacher made all labels there") from None


def make_record(args: argparse.Namespace) -> dict:
    """What makes the labels of this run; recorded so that no other run mixes different ones in."""
    weights = args.weights or (teachers.LITEFLOWNET if args.teacher == "liteflownet" else None)
    return {
        "teacher": args.teacher,
        "weights": io.sha256(weights) if weights else None,
        "align_corners": args.align_corners,
        "rgb": args.rgb,
        "format": args.format,
    }


def check_record(folder: Path, names: list[str], wanted: dict) -> None:
    """ValueError if the folder already holds labels of another kind. A record without labels is ignored."""
    there = read_record(folder)
    if not any(folder.rglob(f"{FLOW[0]}.*")):
        return
    if not there:
        try:
            there = {"format": find_flow(folder / names[0] / FLOW[0]).suffix[1:]}
        except FileNotFoundError:
            return
        print(f"note: no record of what made the labels in {folder}; {wanted['teacher']} is assumed")
    for key, value in there.items():
        if wanted.get(key) != value:
            raise ValueError(
                f"{folder}: has labels made with {key} = {value}, not {wanted.get(key)}; use the same, or move "
                "the folder away"
            )


def check(
    args: argparse.Namespace, names: list[str], teacher: teachers.Teacher, device: torch.device, given: bool
) -> None:
    """Print the quality of the labels of N triplets, spread over the list, and write a contact sheet.

    given: whether --teacher was given. If so, the teacher's flow is judged and compared with the labels, if any;
    otherwise the labels are judged and the teacher only estimates the reverse flow for the consistency check.
    """
    triplets = Vimeo90K(args.data, names, flow=False)
    chosen = [names[round(k)] for k in np.linspace(0, len(names) - 1, min(args.check, len(names)))]
    rows, scores, errors = [], [], []
    print(flow_report.line("triplet", flow_report.SCORES))
    for name in chosen:
        pictures = triplets.stack(triplets.names.index(name)).frames
        frames, there = io.to_float(pictures, device), read_labels(args.data, name, pictures[0], device)
        if there is None and not given:
            raise FileNotFoundError(f"{args.data / 'flow' / name}: no labels to judge; make them, or give --teacher")
        flow = teachers.labels(teacher, *frames[:, None]) if given else there
        if given and there is not None:
            errors.append(flow_report.error_by_motion(flow, there))
        score, row = flow_report.judge(teacher, frames, flow)
        print(flow_report.line(name, score), flush=True)
        scores.append(score)
        rows.append(row)
    print(flow_report.line("mean", np.nanmean(scores, axis=0)))
    print(flow_report.LEGEND)
    if errors:
        print(f"end-point error of {args.teacher} against the flow in {args.data / 'flow'}, both directions:")
        print(flow_report.error_table(np.sum(errors, axis=0)))
    path = args.sheet or Path("results") / f"flow_check_{args.teacher if given else 'labels'}.png"
    io.write_image(path, io.to_uint8(flow_report.contact_sheet(rows)))
    print(f"{path}: im1, im2, im3, flow t->0, flow t->1 (black: unknown or contradictory), mean of both warped frames")


def read_labels(root: Path, name: str, first: np.ndarray, device: torch.device) -> Tensor | None:
    """A triplet's flow, (1, 4, H, W), from a file of any format; None if there is none. first: the first frame,
    (H, W, 3). ValueError if the flow has another size."""
    try:
        paths = [find_flow(root / "flow" / name / stem) for stem in FLOW]
    except FileNotFoundError:
        return None
    both = [flow_files.read_flow(path) for path in paths]
    for path, flow in zip(paths, both):
        check_size(path, flow, first)
    return torch.from_numpy(np.concatenate(both, 2)).movedim(-1, 0)[None].to(device)


def main(args: argparse.Namespace) -> None:
    with distributed.ranks(args) as device:
        lists = [read_list(args.data, part) for part in LISTS[args.split]]
        names = list(dict.fromkeys(name for names in lists for name in names))  # no two processes write one file
        folder, given = args.data / "flow", args.teacher is not None
        check_options(args)
        record = read_record(folder)
        choose(args, record)
        teacher = teachers.build(args.teacher, args.weights, device, align_corners=args.align_corners, rgb=args.rgb)
        if distributed.is_main() and not given:
            print(f"teacher: {args.teacher}, " + why(args.teacher, record, folder))
        if args.check:
            if distributed.world_size() > 1:
                raise ValueError("--check runs in one process; start it without torchrun")
            check(args, names, teacher, device, given)
            return
        with io.only_run(folder):
            with distributed.together():
                if distributed.is_main():
                    begin(args, folder, names)
            generate(args, names, teacher, device)


def check_options(args: argparse.Namespace) -> None:
    """ValueError for options that do not go together."""
    if args.sheet and not args.check:
        raise ValueError(f"--sheet {args.sheet} needs --check N, the number of triplets")
    if args.sheet and not io.is_picture(args.sheet):
        raise ValueError(f"--sheet {args.sheet}: is written as a picture; end the name in {', '.join(io.IMAGES)}")
    if args.check:
        making = ("format", "batch_size", "workers")
        cli.refuse(args, parser(), making, "has no effect on --check, which makes no labels; leave it out")


def choose(args: argparse.Namespace, record: dict) -> None:
    """Set teacher and format where they are left out: those of the existing labels, otherwise the best available."""
    if args.teacher is None:
        known = record.get("teacher") in teachers.TEACHERS
        args.teacher = record["teacher"] if known else teachers.choose()
    if args.format is None:
        args.format = record["format"] if record.get("format") in FORMATS else FLO


def begin(args: argparse.Namespace, folder: Path, names: list[str]) -> None:
    """Check that labels can be made here, and record what makes them."""
    record = make_record(args)
    check_record(folder, names, record)
    check_space(args.data, names, args.format)
    io.clear_left(folder / RECORD)
    io.write_bytes(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def why(teacher: str, record: dict, folder: Path) -> str:
    """Why a teacher was chosen. record: of the labels in the folder."""
    if record.get("teacher") == teacher:
        return f"which made the labels in {folder}"
    if teacher == "dis":
        return "the only one that needs no weights; raft_large (downloaded) and liteflownet (--weights) label better"
    return "the best one whose weights are on this machine"


def parser() -> cli.Parser:
    options = cli.Parser(__doc__)
    about = "folder of the set (default: %(default)s)"
    options.add_argument("--data", type=Path, default=cli.DATA / "vimeo_triplet", help=about)
    about = "default: that of existing labels, otherwise the best one whose weights are on this machine"
    options.add_argument("--teacher", choices=teachers.TEACHERS, help=about)
    options.add_argument("--weights", type=Path, help="weights file of the teacher (default: its own)")
    options.add_argument("--format", choices=FORMATS, help=f"file format (default: that of existing labels, or {FLO})")
    options.add_argument("--batch_size", type=cli.positive, default=8, help="triplets per batch (default: %(default)s)")
    options.add_argument(
        "--workers",
        type=cli.whole,
        default=batches.default_workers(),
        help="number of decoding processes and of writing threads (default: %(default)s)",
    )
    options.add_argument("--split", choices=LISTS, default="train", help="list of triplets (default: %(default)s)")
    options.add_argument("--check", type=cli.positive, metavar="N", help="judge the labels of N triplets; make none")
    options.add_argument("--sheet", type=Path, help="contact sheet of --check (default: results/flow_check_*.png)")
    options.add_argument(
        "--align_corners", action="store_true", help="LiteFlowNet: exact sampling, unlike the published IFRNet"
    )
    options.add_argument(
        "--rgb", action="store_true", help="LiteFlowNet: feed RGB, as the published IFRNet's script does"
    )
    cli.add_device(options)
    distributed.add_options(options)
    return options


if __name__ == "__main__":
    cli.run(main, parser())
