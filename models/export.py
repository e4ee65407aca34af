"""Export the network for other runtimes: ONNX, TorchScript or torch.export's .pt2, in float32, with t as an input.

    python -m models.export --format onnx
    python -m models.export --format pt2 --checkpoint IFRNet_Vimeo90K.pth --size 1280x720 --out small.pt2
    python -m models.export --check IFRNet_S.onnx --providers TensorrtExecutionProvider

Inputs: img0 and img1, (1, 3, H, W) in [0, 1], sides multiples of 16, and t, (1,). Output: the frame, (1, 3, H, W).
Every export is run and compared with the network; --check does that for an existing file. ONNX needs the packages onnx
and onnxscript, and onnxruntime for the comparison.

TensorRT: build from the ONNX file with its types (strongly typed). Where TensorRT may choose half precision, it may
also compute the grid of GridSample in it, which cannot tell pixels apart beyond about 2000 columns: still pictures
shimmer and edges double. --check with its provider, at the size that will be used, shows that as a large difference.
"""

import argparse
import atexit
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from . import VARIANTS, IFRNet
from .baselines import network
from .ifrnet import DIVISOR
from .native import write

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}
NAMES = ("img0", "img1", "t")
OPSET = 20  # GridSample has its final form from here on
SMALLEST, LARGEST = 2, 1024  # dynamic sides, in units of DIVISOR: one pixel at the coarsest level is a special case
DYNAMIC = f"multiples of {DIVISOR} from {SMALLEST * DIVISOR} to {LARGEST * DIVISOR}"
EXAMPLE, OTHER = (256, 448), (512, 336)  # height and width to export and to check with where the size is dynamic
TOLERANCE = 2e-3  # half a grey level
PROGRAM = f"{__package__}.export"  # ifrnet.export, where these networks are installed alone


class Frame(nn.Module):
    """img0, img1, t -> the frame alone."""

    def __init__(self, model: IFRNet):
        super().__init__()
        self.model = model

    def forward(self, img0: Tensor, img1: Tensor, t: Tensor) -> Tensor:
        return self.model(img0, img1, t).imgt


def example(height: int, width: int, t: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs to export and to check with: noise, a few pixels wide, that moves to the left."""
    generator = torch.Generator().manual_seed(0)
    plain = {"dtype": torch.float32, "device": "cpu"}  # whatever PyTorch's defaults
    noise = torch.rand(1, 3, -(-height // 8), -(-width // 8) + 1, generator=generator, **plain)
    picture = nn.functional.interpolate(noise, scale_factor=8, mode="bilinear")[..., :height, :]
    return picture[..., :width].clone(), picture[..., 4 : width + 4].clone(), torch.tensor([t], **plain)


def export(model: IFRNet, form: str, path: str | Path, size: tuple[int, int] | None = None) -> None:
    """Write the network as a file; it is itself moved to the CPU and put into evaluation mode. form: one of SUFFIXES;
    size: (height, width), None for any.

    ValueError for another form, for weights that are not float32, for TorchScript of any size, for sides that are not
    multiples of DIVISOR, where a package is missing and where `path` is a folder.
    """
    path = Path(path)
    if form not in SUFFIXES:
        raise ValueError(f"unknown format {form!r}; choose one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a name for the file")
    if others := sorted({str(weight.dtype) for weight in model.parameters()} - {str(torch.float32)}):
        raise ValueError(f"weights of {', '.join(others)}: an export is float32; call model.float() first")
    if form == "onnx":
        try:
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ValueError(f"ONNX needs the packages onnx and onnxscript: {error}") from None
    if form == "torchscript" and size is None:
        raise ValueError("a TorchScript file has one size; give --size, or another --format")
    if size and any(side < DIVISOR or side % DIVISOR for side in size):
        raise ValueError(f"{size[1]}x{size[0]}: width and height must be multiples of {DIVISOR}")
    frame, inputs = Frame(model.cpu().eval()), example(*(size or EXAMPLE))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own, about their deprecation
        content = _exported(frame, inputs, form, size is None)
    try:
        write(path, content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _exported(frame: Frame, inputs: tuple[Tensor, ...], form: str, dynamic: bool) -> bytes:
    """The content of the file. PyTorch must not write it: on a full disk it aborts the process."""
    file = BytesIO()
    if form == "torchscript":
        torch.jit.save(torch.jit.trace(frame, inputs), file)
        return file.getvalue()
    sides = {
        2 + axis: DIVISOR * torch.export.Dim(name, min=SMALLEST, max=LARGEST)
        for axis, name in enumerate(("rows16", "columns16"))
    }
    shapes = {"img0": sides, "img1": sides, "t": None} if dynamic else None
    program = torch.export.export(frame, inputs, dynamic_shapes=shapes)
    if form == "pt2":
        torch.export.save(program, file)
        return file.getvalue()
    options = {"input_names": NAMES, "output_names": ("imgt",), "opset_version": OPSET}
    return torch.onnx.export(program, inputs, dynamo=True, verbose=False, **options).model_proto.SerializeToString()


def runner(path: str | Path, providers: Sequence[str] = ()) -> Callable[..., Tensor]:
    """An exported file as a function of img0, img1 and t. providers: of onnxruntime, first choice first.

    FileNotFoundError or ValueError where the file is missing or cannot be run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".onnx":
        return _onnx_runner(path, providers)
    if path.suffix not in SUFFIXES.values():
        raise ValueError(f"{path}: not an export; its name must end in {', '.join(SUFFIXES.values())}")
    try:
        with _silent():
            return torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(str(path))
    except Exception as error:  # each format raises other kinds
        raise ValueError(f"{path}: cannot be read as {path.suffix}; export it again") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Without PyTorch's own output: the traceback of a file that it cannot read, and TorchScript's deprecation."""
    log = logging.getLogger("torch.export")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(before)


def _onnx_runner(path: Path, providers: Sequence[str]) -> Callable[..., Tensor]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"an ONNX file is checked with the package onnxruntime: {error}") from None
    missing = sorted(set(providers) - set(onnxruntime.get_available_providers()))
    if missing:
        here = ", ".join(onnxruntime.get_available_providers())
        raise ValueError(f"onnxruntime here has no {', '.join(missing)}; it has {here}")
    order = list(dict.fromkeys([*providers, "CPUExecutionProvider"]))
    try:
        session = onnxruntime.InferenceSession(path, providers=order)
    except Exception as error:  # onnxruntime's have no common type
        raise ValueError(f"{path}: onnxruntime cannot read it: {error}") from None

    def run(*inputs: Tensor) -> Tensor:
        (frame,) = session.run(None, {name: x.numpy() for name, x in zip(NAMES, inputs)})
        return torch.from_numpy(frame)

    return run


def difference(model: IFRNet, run: Callable[..., Tensor], size: tuple[int, int]) -> float:
    """The largest difference between a runner's frames and the network's, over three times, in [0, 1]."""
    most = 0.0
    with torch.inference_mode():
        for t in (0.5, 0.25, 0.9):
            inputs = example(*size, t)
            most = max(most, (run(*(x.clone() for x in inputs)) - Frame(model)(*inputs)).abs().max().item())
    return most


def main(args: argparse.Namespace) -> None:
    model = network(args.model_name, args.checkpoint)
    if args.check and args.out:
        raise ValueError(f"--out {args.out}: --check writes nothing; leave one of the two out")
    form = args.format or "onnx"
    path = args.check or args.out or Path(f"{model.name}{SUFFIXES[form]}")
    if (args.out or args.format) and path.suffix != SUFFIXES[form]:
        raise ValueError(f"{path}: {form} files end in {SUFFIXES[form]}; rename it, or give another --format")
    if args.providers and path.suffix != SUFFIXES["onnx"]:
        raise ValueError(f"--providers: for onnxruntime, which does not run {path}; leave them out")
    if args.check is None:
        export(model, form, path, args.size)
        print(f"wrote {path}")
    if not model.any_time:
        print("these weights were trained at t = 0.5 alone: the file gives the frame at that time for any t")
    height, width = args.size or OTHER
    run = runner(path, args.providers)
    try:
        most = difference(model, run, (height, width))
    except Exception as error:  # each runtime raises other kinds
        raise ValueError(
            f"{path}: does not run at {width}x{height}; give the --size that it was made for, or {DYNAMIC}"
        ) from error
    print(f"largest difference from the network at {width}x{height}: {most:.1e} (frames are in [0, 1])")
    if not most < TOLERANCE:
        way = f"rounding explains at most {TOLERANCE:g}; name its weights with --model_name or --checkpoint"
        raise ValueError(f"{path}: differs from this {model.name} by {most:.1e}; {way}")


def size(text: str) -> tuple[int, int] | None:
    """The type of --size: WIDTHxHEIGHT -> (height, width), dynamic -> None."""
    if text == "dynamic":
        return None
    width, _, height = text.partition("x")
    sides = [int(side) if side.isdecimal() else 0 for side in (height, width)]
    if not all(sides) or any(side % DIVISOR for side in sides):
        what = f"WIDTHxHEIGHT in multiples of {DIVISOR} such as 1280x720, or dynamic"
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give {what}")
    return tuple(sides)


def parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").replace("models.export", PROGRAM)  # there is none under python -OO
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.error = lambda message: options.exit(2, f"{PROGRAM}: {message} (--help lists the options)\n")
    options.add_argument("--format", choices=SUFFIXES, help="file format (default: onnx)")
    options.add_argument(
        "--model_name", "--model-name", choices=VARIANTS, help="network (default: that of --checkpoint, or IFRNet_S)"
    )
    options.add_argument("--checkpoint", help="weights: a path (default: the shipped ones of that name)")
    options.add_argument("--size", type=size, help=f"WIDTHxHEIGHT, or dynamic (default): {DYNAMIC}")
    options.add_argument("--out", type=Path, help="file to write (default: the network's name)")
    options.add_argument("--check", type=Path, metavar="FILE", help="compare this file with the network, write none")
    options.add_argument("--providers", nargs="+", default=[], help="onnxruntime's, to run with (default: its CPU's)")
    return options


if __name__ == "__main__":
    # While Python ends, an interrupt in one of PyTorch's destructors would be a page of traceback.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    try:
        main(parser().parse_args())
    except (ValueError, OSError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the same for those that run as the exception is forgotten
        print(f"{PROGRAM}: {' '.join(str(error).split()) or 'interrupted'}", file=sys.stderr)
        sys.exit(2)
