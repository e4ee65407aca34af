"""Make a video smoother or slower. Input: any file that FFmpeg reads, a folder of pictures or a GIF, of any size.

python interpolate_video.py in.mp4 out.mp4                       twice the frames
python interpolate_video.py in.mp4 out.mp4 --factor 8            eight times the frames
python interpolate_video.py in.mp4 out.mp4 --fps 60000/1001      any rate, at exact times
python interpolate_video.py in.mp4 out.mp4 --slow 4              a quarter of the speed, at the same frame rate
python interpolate_video.py in.mp4 out.mp4 --dedup               animation on twos or threes: repeats become motion
python interpolate_video.py frames/ out.gif --input_fps 12       pictures in, an animation out
python interpolate_video.py in.mp4 frames/                       pictures out, PNG
python interpolate_video.py in.mp4 out.mp4 --resume              continue an interrupted run
python interpolate_video.py in.mp4 out.mp4 --compare side        repeated and interpolated frames side by side
python interpolate_video.py in.mp4 sheet.png --preview 6         look at six places before a long run
torchrun --nproc_per_node=4 interpolate_video.py in.mp4 out.mp4  each GPU makes its share
... | python interpolate_video.py - - --factor 2 | ...           y4m in and out
ffmpeg -ss 60 -t 10 -i in.mp4 -f yuv4mpegpipe - | python interpolate_video.py - part.mp4    ten seconds of it

Frames of the input are passed through unchanged, also where one is due within a fiftieth of the time between two. No
frames are interpolated across a cut, except with --cuts no, nor where a recording stores none for more than half a
second and more than four times as long as usual. Film with the flags of 3:2 pulldown is shown evenly. Sound, subtitles
and chapters are copied if the output format can hold them, except with --slow. Of more than 8 bits per colour 10 are
kept by h265, the default then, av1 and ffv1, and 16 by a folder of PNG. 4K takes under 5 GB of memory, with 10 bits
under 6: see --scale and --tile.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from itertools import islice
from math import ceil
from pathlib import Path

import cv2
import numpy as np

from models.baselines import Baseline, interpolator
from models.interpolator import LEAST_ROWS, Interpolator, scales_for
from utils import cli, colours, distributed, hdr, io, video, video_join, video_out
from utils.parts import begun, folder_of, holds_part
from utils.pipeline import between, halves, to_integers
from utils.shots import is_cut
from utils.timeline import Grid, Pauses
from utils.video_job import Job, by_motion, say, to_parts, to_pipe

SHEET = 1920  # width of a preview in pixels
MOST_TIMES, MOST_PLACES = 1000, 100


def rate(text: str) -> Fraction:
    """The type of a frame rate: 60, 59.94 or 60000/1001."""
    return _fraction(text, Fraction(1, 1000), 10000, "a frame rate; give one such as 60, 23.976 or 60000/1001")


def stretch(text: str) -> Fraction:
    """The type of --slow: 4, 2.5 or 5/2."""
    return _fraction(text, 1, MOST_TIMES, f"a number from 1 to {MOST_TIMES}, such as 4 or 2.5")


def _fraction(text: str, least: Fraction | int, most: int, what: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def times(text: str) -> int:
    """The type of --factor."""
    value = cli.positive(text)
    if value > MOST_TIMES:
        raise argparse.ArgumentTypeError(f"{value} is more than {MOST_TIMES} times; give less")
    return value


def places(text: str) -> int:
    """The type of --preview."""
    value = cli.positive(text)
    if value > MOST_PLACES:
        raise argparse.ArgumentTypeError(f"{value} places are more than {MOST_PLACES}; give fewer")
    return value


def tile(text: str) -> int | str | None:
    """The type of --tile: a number of rows, "auto" or "none"."""
    if text in ("auto", "none"):
        return {"auto": "auto", "none": None}[text]
    if not text.isdecimal() or int(text) < LEAST_ROWS:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, none or a number of rows from {LEAST_ROWS} up")
    return int(text)


def parser() -> cli.Parser:
    options = cli.Parser(__doc__)
    options.add_argument("input", help="a video file, a folder of pictures, a GIF, or - for y4m")
    options.add_argument("output", help=f"{', '.join(video_out.DEFAULTS)}, .gif, a folder for PNG, or - for y4m")
    about = "output frames per input frame (default: 2, or --slow if larger, rounded up)"
    options.add_argument("--factor", type=times, help=about)
    options.add_argument("--fps", type=rate, help="frames per second, 60 or 60000/1001, instead of --factor")
    about = "stretch time by this factor; drops sound, subtitles and chapters"
    options.add_argument("--slow", type=stretch, default=Fraction(1), help=about)
    options.add_argument("--input_fps", type=rate, help="frame rate of a folder of pictures (default: 24)")
    options.add_argument("--cuts", choices=("yes", "no"), default="yes", help="detect cuts (default: yes)")
    about = "put motion in place of repeated frames, as of animation; output times stay the same"
    options.add_argument("--dedup", action="store_true", help=about)
    about = "default: h264, h265 for more than 8 bits per colour, vp9 for .webm; ffv1 is lossless"
    options.add_argument("--codec", choices=video_out.CODECS, help=about)
    options.add_argument("--crf", type=int, help="quality of the encoder: lower is better (default: by codec)")
    options.add_argument(
        "--scale",
        type=cli.scale,
        default="auto",
        help="scale of flow estimation; auto (default): by motion; multi: several, for a third more arithmetic than 1",
    )
    options.add_argument("--tile", type=tile, default="auto", help="rows at a time, none or auto (default): by memory")
    options.add_argument("--compare", choices=("side", "split"), help="show repeated frames beside interpolated ones")
    options.add_argument("--preview", type=places, metavar="N", help="write only a picture of N places in the video")
    existing = options.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace an existing output")
    existing.add_argument("--resume", action="store_true", help="continue an interrupted run with the same settings")
    options.add_argument("--segment", type=cli.positive, default=10, help="seconds per restart point (default: 10)")
    cli.add_model(options, mode="auto")
    distributed.add_options(options)
    return options


def main(args: argparse.Namespace) -> None:
    os.environ.setdefault("SVT_LOG", "1")  # errors only: the AV1 encoder prints twenty lines per segment
    if args.output != video.PIPE:
        args.output = pointed_to(args.output)
    kind = check_output(args)
    if args.input_fps and not Path(args.input).is_dir():
        raise ValueError(f"--input_fps {args.input_fps}: {args.input} is not a folder of pictures; leave it out")
    source = video.open_source(args.input, args.input_fps or Fraction(24))
    grid = Grid(args.factor or (1 if args.fps else max(2, ceil(args.slow))), args.fps, args.slow)
    with distributed.ranks(args) as device:
        call = interpolator(
            args.model_name,
            args.checkpoint,
            device,
            precision=args.precision,
            scale=args.scale,
            tile=args.tile,
            mode=args.mode,
            pixels=pixels(args, source, grid),
        )
        check_grid(call, source, grid)
        if args.preview:
            preview(args, source, grid, call)
            return
        form = output_format(args, source, grid, kind)
        if kind == ".gif" and average_rate(source, grid) > video_out.FASTEST_GIF:
            raise ValueError(
                f"{args.output}: a GIF shows at most {video_out.FASTEST_GIF} frames a second; give --fps 50"
            )
        for note in (*source.notes, *notes(args, source, grid, form, kind)):
            say(note)
        job = Job(args, source, grid, call, form, kind, Pauses(args.dedup))
        if kind == "pipe":
            to_pipe(job)
        else:
            with io.only_run(folder_of(Path(args.output))):
                if distributed.is_main():
                    check_output(args)  # once more: another run may have written this output meanwhile
                to_parts(job)
        if found := job.pauses.regular:
            what = f"of every {found.frames} frames {found.repeats} repeat{'s' * (found.repeats == 1)} the one before"
            say(f"{args.input}: {what}; without them motion is even: ffmpeg -i IN -vf {found.even} OUT")
        elif job.pauses.often and not args.dedup:
            say(f"{args.input}: motion often pauses, as on twos or threes; --dedup puts motion in place of the repeats")
        if source.damaged:
            frames = f"{source.damaged} frame{'s' * (source.damaged > 1)}"
            say(f"{source.path}: {frames} left out, damaged or cut short; the file may be incomplete")


# Checks and settings


def check_output(args: argparse.Namespace) -> str:
    """The kind of output that is asked for, see video_out.kind_of. ValueError or OSError if it cannot be made, or would
    replace something without --overwrite."""
    out = Path(args.output)
    if args.factor and args.fps:
        raise ValueError(f"--factor {args.factor} and --fps {args.fps}: give only one of them")
    if args.preview:
        if out.suffix.lower() not in io.IMAGES:
            raise ValueError(f"{out}: a preview is a picture; give it a name that ends in {', '.join(io.IMAGES)}")
        others = ("compare", "codec", "crf", "fps", "dedup", "resume", "segment")
        cli.refuse(args, parser(), others, "has no effect on a preview; leave it out")
        kind = "picture"
    else:
        kind = video_out.kind_of(args.output)
        check_encoding(args, kind)
    for name, stream in ((args.input, sys.stdin), (args.output, sys.stdout)):
        if name == video.PIPE and (stream is None or stream.buffer.isatty()):
            raise ValueError(f"{name}: is a terminal or closed, not a pipe for y4m; name a file")
    if kind == "pipe":
        if args.resume:
            raise ValueError("--resume: a pipe does not keep what was written; name a file")
        return kind
    if args.input != video.PIPE and out.exists() and Path(args.input).exists() and out.samefile(args.input):
        raise ValueError(f"{out}: is also the input; give the output another name")
    if kind == "folder":
        video_out.check_folder(out)
    io.check_writable(out.parent)
    if (begun(out) or holds_part(out)) and not (args.resume or args.overwrite or args.preview):
        raise ValueError(f"{out}: was begun and is not finished; --resume continues it, --overwrite starts anew")
    empty = kind == "folder" and out.is_dir() and not any(out.iterdir())
    if out.exists() and not empty and not args.overwrite and not (args.resume and folder_of(out).exists()):
        raise ValueError(f"{out}: exists and is finished; give --overwrite to replace it, or another name")
    return kind


def pointed_to(output: str) -> str:
    """The output's path with links and "." resolved, so that the file itself is replaced, not a link to it. ValueError
    if the link is circular or leads to a name with another extension, which would be another kind of file."""
    if not output:
        raise ValueError("the output has no name; was a shell variable empty?")
    out = Path(output)
    if out.name and not out.is_symlink():
        return output
    target = Path(os.path.realpath(out))
    other = not target.is_dir() and target.suffix.lower() != out.suffix.lower()
    if out.name and (target.is_symlink() or other):
        raise ValueError(f"{out}: is a link to {target}, which has another extension or leads nowhere; name that file")
    return str(target)


def check_encoding(args: argparse.Namespace, kind: str) -> None:
    if kind in video_out.DEFAULTS:
        if args.codec:
            video_out.check_codec(Path(args.output), args.codec)
        if args.crf is not None:
            video_out.check_crf(args.codec or video_out.DEFAULTS[kind], args.crf)
    elif args.codec or args.crf is not None:
        option = f"--codec {args.codec}" if args.codec else f"--crf {args.crf}"
        raise ValueError(f"{args.output}: {option} is only for {', '.join(video_out.DEFAULTS)}; leave it out")


def check_grid(call: Interpolator | Baseline, source: video.Source, grid: Grid) -> None:
    """ValueError if the weights answer t = 0.5 only and not even repeated halving reaches the output's times, which are
    taken to be those at the input's nominal rate."""
    step = source.rate / grid.rate / grid.slow if grid.rate else Fraction(1, grid.factor)
    if not call.any_time and not halves(step):
        call.check_times([float(step % 1)])


def pixels(args: argparse.Namespace, source: video.Source, grid: Grid) -> float | None:
    """At most how many pixels the network will process; None with --fast, which needs no estimate, or if the number of
    frames is known only after reading."""
    if args.mode == "fast" or source.count is None:
        return None
    if args.preview:
        made = args.preview * max(grid.factor - 1, 1)
    elif grid.rate is None:
        made = (source.count - 1) * (grid.factor - 1)
    else:
        made = grid.count(source.count, source.rate)
    scales = scales_for(source.height, source.width, args.scale)
    return made * source.height * source.width * sum(scale**2 for scale in scales)


def output_format(args: argparse.Namespace, source: video.Source, grid: Grid, kind: str) -> video_out.Format:
    shown = grid.rate or source.rate * grid.factor / grid.slow
    deep = colours.bits(source.pix_fmt) > 8
    fixed = {".gif": video_out.LOSSLESS, "pipe": video_out.RAW, "folder": video_out.PNG}.get(kind)
    codec = fixed or args.codec or video_out.default_codec(kind, deep)
    keep = source.pix_fmt
    if args.compare or kind == ".gif":
        keep = colours.DEEP if deep and kind != ".gif" else colours.SHALLOW
    width = source.width * 2 if args.compare == "side" else source.width
    return video_out.Format(
        width=width,
        height=source.height,
        rate=shown,
        tick=1 / shown if kind == "pipe" else grid.tick(source.step, source.rate),
        origin=Fraction(0) if kind in ("pipe", ".gif") or args.slow > 1 else source.origin - source.begin,
        longest=None if grid.rate else max((source.longest or 1 / source.rate) / grid.factor, source.hold) * grid.slow,
        codec=codec,
        crf=args.crf,
        colour=source.colour,
        aspect=source.aspect,
        keep=keep,
        light=source.light,
    )


def average_rate(source: video.Source, grid: Grid) -> Fraction:
    """Frames a second of the output, on average."""
    if grid.rate:
        return grid.rate
    rate = (source.count - 1) / source.last if source.last else source.rate
    return rate * grid.factor / grid.slow


def notes(
    args: argparse.Namespace, source: video.Source, grid: Grid, form: video_out.Format, kind: str
) -> Iterator[str]:
    if args.slow > 1 and source.has_copied:
        yield f"{args.output}: without sound and subtitles, because --slow {float(args.slow):g} stretches time"
    elif source.has_copied and kind not in video_out.DEFAULTS:
        yield f"{args.output}: without sound and subtitles, which this kind of output cannot hold"
    elif kind in video_out.DEFAULTS and isinstance(source, video.Video):
        yield from video_join.left_out(source.path, Path(args.output))
    if kind in video_out.DEFAULTS and form.stored != (form.width, form.height):
        name = f"{args.output}: {form.width}x{form.height} is odd"
        yield f"{name}; the last row or column is doubled, because {form.codec} needs even sizes"
    average = average_rate(source, grid)
    shown = f"{args.output}: {float(average):g} frames a second"
    if kind == ".gif" and average > 50:
        yield f"{shown}; most viewers show a GIF at 50 at most"
    if kind in (".mkv", ".webm") and average > video_out.FASTEST_MATROSKA:
        yield f"{shown}; {kind} counts in milliseconds, and some frames get equal times; use .mp4"
    if kind == "pipe" and not grid.rate and source.last is not None:
        if abs(source.last - (source.count - 1) / source.rate) > 1 / source.rate:
            yield f"{args.output}: y4m has no times, and the frames of {source.path} come at unequal ones; give --fps"
    if kind in (".mkv", ".webm") and form.aspect != 1 and form.codec in ("ffv1", "vp9", "av1"):
        yield f"{args.output}: the pixel aspect ratio {form.aspect} is not stored in {kind} with {form.codec}; use .mp4"
    told = isinstance(source, video.Folder) and not form.deep  # by utils.io, as wherever pictures are read
    if colours.bits(source.pix_fmt) > form.depth and not told:
        yield f"{source.path}: more than {form.depth} bits per colour ({source.pix_fmt}), reduced to {form.depth}"
    chroma = video_out.KEPT[video_out.LOSSLESS].match(source.pix_fmt) if kind != "folder" else None  # PNG is RGB
    if chroma and chroma[2] in ("411", "422", "440", "444") and form.pix_fmt.startswith("yuv420p"):
        name = f"{source.path}: chroma of 4:{chroma[2][1]}:{chroma[2][2]} ({source.pix_fmt})"
        yield f"{name}, reduced to 4:2:0, which every player plays; .mkv with --codec ffv1 keeps it"
    if source.light != hdr.Light() and form.codec not in hdr.OPTIONS:
        how = f"with {form.codec}; use" if kind in video_out.DEFAULTS else "in this kind of output; make a video with"
        yield f"{args.output}: what HDR10 says of brightness is not stored {how} {', '.join(hdr.OPTIONS)}"
    tags = (colours.UNKNOWN if form.rgb else form.colour.matrix, form.colour.primaries, form.colour.transfer)
    partly = colours.UNKNOWN in tags and form.colour != colours.Colour()
    if kind in video_out.MP4 and form.codec == "ffv1" and partly:
        yield f"{args.output}: the colour description is not stored in {kind} with ffv1; use .mkv"
    if kind not in video_out.DEFAULTS and source.colour.beyond_sdr:
        yield f"{args.output}: colours are of HDR or BT.2020, which this kind of output cannot say; they look pale"
    untagged = source.colour._replace(matrix=colours.UNKNOWN)
    if kind == "pipe" and untagged.conversion(source.height) != source.colour.conversion(source.height):
        yield f"{args.output}: y4m cannot say that colours are not by the usual matrix; tag what is made of it"
    if kind in (".gif", "folder") and form.aspect != 1:
        yield f"{args.output}: the pixel aspect ratio {form.aspect} becomes 1, and the picture narrower or wider"


# A look before a long run


def preview(args: argparse.Namespace, source: video.Source, grid: Grid, call: Interpolator | Baseline) -> None:
    """N rows: a frame of the input, the frames between (black across a cut), the next frame of the input."""
    if source.count is None:
        raise ValueError(f"{source.path}: a preview needs to seek; give a file")
    ts = [Fraction(k, grid.factor) for k in range(1, grid.factor)] or [Fraction(1, 2)]
    scale, rows = by_motion(args), []
    end = source.last * (source.count - 2) / (source.count - 1)  # the last frame but one, at a constant rate
    for i in range(args.preview):
        place = min(source.last * (2 * i + 1) / (2 * args.preview), end)
        with closing(source.frames(place)) as frames:
            pair = [frame.image for frame in islice(frames, 2)]
        if not pair:
            raise ValueError(f"{source.path}: no frame can be decoded from {float(place):.2f} s on")
        first, second = pair[0], pair[-1]
        if args.cuts == "yes" and is_cut(first, second):
            made = [np.zeros_like(first)] * len(ts)
        else:
            tensors = (io.to_float(image, call.device)[None] for image in (first, second))
            frames = between(call, *tensors, ts, scale and scale(first, second))
            made = [to_integers(frame[0]).movedim(0, -1).cpu().numpy() for frame in frames]
        row = np.concatenate([first, *made, second], 1)
        height = max(1, round(row.shape[0] * min(1, SHEET / row.shape[1])))
        width = min(SHEET, row.shape[1])
        rows.append(cv2.resize(row, (width, height), interpolation=cv2.INTER_AREA))
    io.write_image(args.output, np.concatenate(rows))
    say(f"wrote {args.output}")


if __name__ == "__main__":
    cli.run(main, parser())
