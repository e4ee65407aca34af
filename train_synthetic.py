"""Train without a download: photographs in procedural motion with exact flow, and your own footage if you have any.

    python train_synthetic.py --minutes 30
    python train_synthetic.py --images PHOTOS --masks SEGMENTATIONS --clips CLIPS --minutes 90
    python train_synthetic.py --images PHOTOS --masks SEGMENTATIONS --clips CLIPS --minutes 180 --resume auto

Any t in (0, 1) is trained on, so the weights serve both 2x and 8x. Crops grow during the run: a network begins to see
flow after some ten thousand independent motions, which small, clean crops supply within minutes; large crops hold large
motion and the degradations of cameras and encoders (datasets/effects.py). The elapsed share of --minutes sets the
learning rate, the crops and, without --init, the loss weights. With --resume and a larger --minutes, a finished run
continues. checkpoints/README.md describes the weights made with this script.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import pairwise, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
import models.flow
from datasets import Sample, clips, synthetic
from datasets.mixture import SPANS, Footage, Mixture, own_groups
from losses import ifrnet_loss
from losses.terms import flow_error, full_size, log_error
from models.layers import warp
from models.weights import bare
from models.widen import widen
from utils import checkpoint, cli, distributed, epochs, io, runs
from utils.batches import stream
from utils.step import AMP, OPTIMIZERS, Recipe, quickest_amp
from utils.training import cosine, fit
from utils.validation import Validation

FLOW_START, FLOW_END = 0.1, 0.002  # weight of the exact-flow term: it leads at first, the picture decides in the end
GEOMETRY_FROM = 0.5  # share of the run after which the geometry term joins: see `weighted`
CROP = 96  # the side that --batch_size and --speed refer to; smaller crops: more samples, slower motion, no effects
TRUSTED = 0.06  # DIS flow is trusted where colour changes by less than this along it and by more than this nearby
LONGEST = 640  # footage is halved until its longer side is at most this, which also reduces compression artefacts
RESIDENT = 0.4  # share of a GPU's free memory that footage may take; crops are then cut on the GPU
LEAST_PATCH = 32
VALIDATION_SEED = -1
VALIDATION_SCENES, VALIDATION_WINDOWS = 24, 2  # scenes if there is no footage; windows per clip if there is


def dis_flow(frames: np.ndarray) -> np.ndarray:
    """DIS flow (H, W, 4) of three frames (3, H, W, 3) uint8, NaN where it is not trusted: where it leads to another
    colour (an occlusion or a wrong match), and where the neighbourhood has too little contrast to match."""
    img0, imgt, img1 = io.to_float(frames)[:, None]
    flow = models.flow.labels(models.flow.build("dis"), img0, imgt, img1)
    grey = imgt.mean(1, keepdim=True)
    contrast = F.max_pool2d(grey, 17, 1, 8) + F.max_pool2d(-grey, 17, 1, 8)
    for img, half in ((img0, flow[:, :2]), (img1, flow[:, 2:])):
        wrong = (warp(img, half) - imgt).abs().mean(1, keepdim=True) > TRUSTED
        half.masked_fill_(wrong | (contrast < TRUSTED), torch.nan)
    return flow[0].movedim(0, -1).numpy()


def batch_size(args: argparse.Namespace, crop: int) -> int:
    """Samples per step, 2 or more: fewer of larger crops, so that its work grows with a crop's side, not its square."""
    return max(round(args.batch_size * CROP / crop), 2)


def terms(out: models.Interpolation, imgt: Tensor, flow: Tensor, psnr: float = 0.0) -> dict[str, Tensor]:
    """The terms of ifrnet_loss, weighted as there, and the flow error of all levels, unweighted; unless `psnr` is 0,
    also log_error times `psnr`."""
    out = out._replace(flows=tuple(full_size(level, flow.shape[-2:]) for level in out.flows))  # once, for two terms
    terms = ifrnet_loss(out, imgt, flow) | {"flow": flow_error(out.flows, flow)}
    return terms | {"log_error": psnr * log_error(out.imgt, imgt)} if psnr else terms


def weighted(terms: dict[str, Tensor], progress: float, without: Sequence[str] = ()) -> dict[str, Tensor]:
    """The terms as they count at `progress`: the flow's weight falls from FLOW_START to FLOW_END, geometry counts from
    GEOMETRY_FROM on, and terms named in `without` are left out.

    The geometry term pulls the decoder's and the encoder's features together, and all-zero features match best: before
    flow needs the features, the term shrinks them (seen: to a hundredth in 1,500 steps), and no flow can be learnt.
    """
    flow = FLOW_START * (FLOW_END / FLOW_START) ** progress
    terms = terms | {"flow": flow * terms["flow"], "geo": terms["geo"] * (progress >= GEOMETRY_FROM)}
    return {name: term for name, term in terms.items() if name not in without}


def begin(args: argparse.Namespace) -> models.IFRNet:
    """The network before its first step. ValueError if --init cannot become --model_name with --activation."""
    if args.init is None:
        model = models.build(args.model_name, args.activation)
        initialise(model)
        return model
    model = models.load(args.init)
    if model.act != args.activation:
        raise ValueError(f"{args.init}: a network with {model.act}; give --activation {model.act}")
    return model if model.name == args.model_name else widen(model, args.model_name, args.seed)


@torch.no_grad()
def initialise(model: models.IFRNet) -> None:
    """Weights that keep the size of signals through all layers (He et al., 2015), with flow near zero at first.

    PyTorch's defaults are 2.4 times smaller in every layer: a short run would spend a thousand steps on growing them.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=0.25)
            layer.weight *= 0.3 if name.endswith("conv5") else 1  # at first the residual shortcut dominates
        elif isinstance(layer, nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=(4 * layer.in_channels) ** -0.5)  # 4 of the 16 taps reach an output pixel
            layer.weight[:, :4] *= 0.1
        else:
            continue
        nn.init.zeros_(layer.bias)


class Stage(NamedTuple):
    """A part of the run. crop: side of its crops; end: share of the run at which it ends; following: the next crop."""

    crop: int
    end: float
    following: int | None


def stages(crops: Sequence[int], ends: Sequence[float]) -> list[Stage]:
    """The stages of a run. ValueError unless there is one end per crop, in increasing order, the last 1."""
    rising = all(a < b for a, b in pairwise([0, *ends]))
    if len(crops) != len(ends) or not rising or ends[-1] != 1:
        raise ValueError(f"--crop_ends {' '.join(map(str, ends))}: give one rising share per crop, the last 1")
    return [Stage(*each) for each in zip(crops, ends, [*crops[1:], None])]


def read_footage(args: argparse.Namespace) -> tuple[dict[int, list], list[clips.Window]]:
    """The windows to train on, by span and clip, and the windows to validate on, which are of other clips."""
    found = clips.open_clips(args.clips, longest=LONGEST)
    held = args.val_clips or [clip.name for clip in found[::4]]
    train = [clip for clip in found if clip.name not in held]
    if not train:
        way = "name fewer in --val_clips" if args.val_clips else "add another to train on"
        raise ValueError(f"{args.clips}: all {len(found)} clips are for validation; {way}")
    footage = {span: [w for clip in train if (w := clips.windows([clip], span))] for span in SPANS}
    val = []
    for clip in clips.open_clips(args.clips, only=held, longest=LONGEST):
        windows = clips.windows([clip], 3, step=5)
        val += windows[:: max(len(windows) // VALIDATION_WINDOWS, 1)][:VALIDATION_WINDOWS]
    if not val:
        raise ValueError(f"{args.clips}: no window of three frames in {', '.join(held)}; name others in --val_clips")
    return footage, val


def read_material(args: argparse.Namespace) -> synthetic.Material:
    """What scenes are made of. Without --images photographs are few, and half of the material is textures."""
    images = io.list_images(args.images, below=True) if args.images else None
    procedural = (0.1 if images else 0.5) if args.procedural is None else args.procedural
    return synthetic.material(images, args.masks, procedural, args.patch_size, args.seed)


def clips_of(footage: dict[int, list]) -> list[clips.Clip]:
    """All clips of the footage, each once."""
    return list({windows[0].clip.name: windows[0].clip for of in footage.values() for windows in of}.values())


def resident(footage: dict[int, list], args: argparse.Namespace, device: torch.device) -> clips.Resident | None:
    """The footage in the GPU's memory, if it fits there beside the training; None: it is read from disk."""
    found = clips_of(footage)
    if device.type != "cuda" or args.clip_flow != "none" or not found:
        return None
    size = sum(int(np.prod(clip.frames.shape)) for clip in found)
    held = size <= RESIDENT * torch.cuda.mem_get_info(device)[0]
    distributed.say("footage is " + ("in the GPU's memory" if held else f"read by {args.workers} worker processes"))
    return clips.Resident(found, device) if held else None


class Data(NamedTuple):
    """What a run trains on. material: of scenes. footage: windows by span and clip, empty without any; resident: the
    same in a GPU's memory, if it is there. val_set: what it validates on."""

    material: synthetic.Material
    footage: dict[int, list]
    resident: clips.Resident | None
    val_set: Sequence[Sample]


def mixture_of(args: argparse.Namespace, data: Data, crop: int, start: int, ahead: Mixture | None = None) -> Mixture:
    """The batches of crops of one size from iteration `start` on, those of `ahead` among them."""
    return Mixture(
        data.material,
        data.footage,
        crop,
        batch_size(args, crop),
        real=args.real,
        speed=args.speed * min(1, crop / CROP),
        strength=args.effects * (crop >= CROP),
        label=dis_flow if args.clip_flow == "dis" else None,
        seed=args.seed,
        rank=distributed.rank(),
        start=start,
        ahead=ahead,
        resident=data.resident,
    )


def validation_scenes(material: synthetic.Material, args: argparse.Namespace) -> list[Sample]:
    """Scenes that training does not draw, to validate on without footage. Something moves in every one."""
    source = synthetic.Synthetic(material, (192, 256), speed=args.speed, seed=VALIDATION_SEED)
    held = []
    while len(held) < VALIDATION_SCENES:
        sample = Sample(*(x[0].cpu() for x in source.batch(1)))
        if sample.flow.abs().amax() > 1:
            held.append(sample)
    return held


def main(args: argparse.Namespace) -> None:
    plan = stages(args.crops, args.crop_ends)
    if args.patch_size < LEAST_PATCH:
        raise ValueError(f"--patch_size {args.patch_size}: too small for a scene; give {LEAST_PATCH} or more")
    if not args.minutes > 0:
        raise ValueError(f"--minutes {args.minutes:g}: a run needs time; give more than 0")
    if args.clips is None:
        if args.speed < synthetic.LEAST_SPEED:  # hardly a scene to validate on would move
            raise ValueError(f"--speed {args.speed:g}: too slow to validate on; give {synthetic.LEAST_SPEED} or more")
        why = "is about footage; give --clips, the folder of the footage"
        cli.refuse(args, parser(), ("val_clips", "real", "clip_flow"), why)
    if args.real == 0 or {"dis", "flow"} <= set(args.without):
        cli.refuse(args, parser(), ("clip_flow",), "has no effect with --real 0 or --without dis flow; leave it out")
    with distributed.ranks(args) as device, runs.opened(args) as (folder, content):
        run(args, plan, folder, device, content)


def run(args: argparse.Namespace, plan: list[Stage], folder: Path, device: torch.device, content: dict | None) -> None:
    """Run all stages; `folder` is held by this run. content: the checkpoint to resume from, if any."""
    if content:
        begun = runs.config_of(content).get("init")
        if args.init not in (None, begun):
            how = f"with --init {begun}" if begun else "without --init"
            raise ValueError(f"--init {args.init}: the run in {folder} began {how}; leave the option out")
        args.init = begun  # the loss depends on it
    material = read_material(args).to(device)
    footage, val = read_footage(args) if args.clips else ({}, [])
    val_set = clips.Windows(val) if val else validation_scenes(material, args)
    args.step_size = distributed.world_size() * args.batch_size
    args.validation = runs.fingerprint(val_set)
    windows = [window for by_clip in footage.values() for of_clip in by_clip for window in of_clip]
    content = runs.settled(content, runs.recorded(args), len(val_set), [window.name for window in windows + val])
    torch.manual_seed(args.seed)
    model = models.build(args.model_name, args.activation) if content else begin(args)
    cut = len(material.cutouts.picture) if material.cutouts else 0
    distributed.say(
        f"{len(material.patches)} patches of photographs and textures, {cut} objects cut out of photographs, "
        f"{len(windows)} windows of footage, {len(val_set)} samples to validate on"
    )
    data = Data(material, footage, resident(footage, args, device), val_set)
    if args.init and not content:
        content = {"model": model.state_dict(), "iteration": 0}  # scored before the first step, as weights to beat
    trained = False
    for stage in plan:
        spent = max(distributed.gather(content.get("seconds", 0.0) if content else 0.0))  # the same on every rank
        if content and spent >= args.minutes * 60 * stage.end:
            continue
        trained = True
        content = train(args, stage, model, data, folder, device, content)
    if not trained:
        distributed.say(f"nothing to do: the run has taken {spent / 60:.1f} minutes; a larger --minutes continues it")
    if distributed.is_main():
        shipped = folder / f"{args.model_name}.pth"
        halves = {name: (x.half() if x.is_floating_point() else x).cpu() for name, x in bare(content).items()}
        io.clear_left(shipped)
        checkpoint.write(shipped, halves)
        print(f"wrote {shipped}: the final weights, 16 bits; {folder / checkpoint.LATEST}: the checkpoint to resume")


def train(
    args: argparse.Namespace,
    stage: Stage,
    model: models.IFRNet,
    data: Data,
    folder: Path,
    device: torch.device,
    content: dict | None,
) -> dict:
    """Run one stage: crops of one size, and some of the next stage's. content: the checkpoint to resume from, if any;
    returns the final one."""
    small = sorted(clip.name for clip in clips_of(data.footage) if clip.short_side < stage.crop)
    if small:
        distributed.say(f"crop {stage.crop}: {len(small)} clips are smaller and left out: {', '.join(small)}")
    size = batch_size(args, stage.crop)
    if data.footage and args.real > 0 and not round(args.real * size):
        distributed.say(
            f"crop {stage.crop}: no footage, as --real {args.real:g} of {size} samples is no more than half of one"
        )
    recipe = Recipe(
        minutes=args.minutes * stage.end,
        eval_every=args.eval_iterations,
        channels_last=True,
        log_every=args.log_every,
        save_every=args.save_every,
        amp=quickest_amp(device) if args.amp == "auto" else args.amp,
        **{name: getattr(args, name) for name in ("lr_start", "compile", "ema", "clip_grad", "optimizer")},
    )
    rate = cosine(args.lr_start, args.lr_end)
    torch.compiler.reset()  # compiled for the crops of this stage: the sizes of all stages would be too many

    def batches(start: int) -> Iterator[Sample]:
        ahead = mixture_of(args, data, stage.following, start) if stage.following else None
        return batches_of(mixture_of(args, data, stage.crop, start, ahead), args.workers, device)

    def loss(out: models.Interpolation, batch: Sample, done: float) -> dict[str, Tensor]:
        progress = 1.0 if args.init else done * stage.end  # weights that see motion already need no flow to lead them
        return weighted(terms(out, batch.imgt, batch.flow, args.psnr), progress, args.without)

    return fit(
        model,
        batches,
        loss,
        recipe,
        folder,
        device,
        schedule=lambda progress: rate(progress * stage.end),
        validate=Validation(data.val_set, device),
        resume=content,
        config=runs.recorded(args),
    ).content()


def batches_of(mixture: Mixture, workers: int, device: torch.device) -> Iterator[Sample]:
    """The batches of a mixture; see `Mixture.batches`."""
    if device.type == "cpu":
        return mixture.batches(stream(mixture, workers))
    # On a GPU this process makes the scenes; workers meanwhile read the footage, or pick its places if resident.
    real = repeat(None)
    if mixture.real or mixture.ahead and mixture.ahead.real:
        real = stream(Footage(mixture), workers, pin=True)
    return mixture.batches(map(mixture.group, own_groups(mixture.start), real))


def parser() -> cli.Parser:
    options = cli.Parser(__doc__)
    options.set_defaults(recipe="synthetic", resume_path=None, resume_epoch=None)
    add = options.add_argument
    add("--model_name", choices=models.VARIANTS, default="IFRNet_S", help="network (default: %(default)s)")
    add("--activation", choices=models.ACTIVATIONS, default="prelu", help="default: the paper's prelu")
    about = "weights to begin with and to beat: path or shipped name, widened if needed; the loss is as at a run's end"
    add("--init", help=about)
    add("--images", type=Path, help="folder of photographs (default: those inside scikit-image)")
    about = "side of the squares that photographs are cut into (default: %(default)s)"
    add("--patch_size", type=cli.positive, default=320, help=about)
    add("--masks", type=Path, help="segmentations of --images (BSDS500's .mat, or .png), to cut out objects")
    add(
        "--procedural",
        type=cli.share,
        metavar="SHARE",
        help="share of made-up textures in scenes (default: half; with --images a tenth)",
    )
    about = "factor on the shares of blur, drift, noise, overlays, compression in crops of 96 and more (%(default)s)"
    add("--effects", type=cli.amount, default=1.0, help=about)
    add("--clips", type=Path, help="folder of videos or frame folders (default: no footage)")
    add("--val_clips", nargs="+", metavar="NAME", help="clips to validate on alone (default: every fourth)")
    add("--real", type=cli.share, default=1 / 3, help="share of footage in a batch (default: a third)")
    about = "target flow for windows of footage: none, or OpenCV's DIS where it is trusted (default: %(default)s)"
    add("--clip_flow", choices=["none", "dis"], default="none", help=about)
    about = "terms of the loss to leave out, to see what they contribute"
    add("--without", nargs="+", choices=["geo", "dis", "flow"], default=[], help=about)
    about = "weight of PSNR in the loss, per dB; about 0.005 at the end of training (default: 0, none)"
    add("--psnr", type=cli.amount, default=0.0, help=about)
    add(
        "--speed",
        type=cli.amount,
        default=4.0,
        help="median motion of objects in pixels, in crops of 96 and more (%(default)s)",
    )
    add("--minutes", type=cli.amount, default=30.0, help="length of the run (default: %(default)s)")
    add("--crops", type=epochs.crop, nargs="+", default=[32, 64, 96, 128, 160], help="sides of the crops (%(default)s)")
    ends = [0.15, 0.35, 0.6, 0.8, 1.0]
    about = "share of the run at which each crop size ends (%(default)s)"
    add("--crop_ends", type=float, nargs="+", default=ends, help=about)
    about = "samples per process and step, at crops of 96; 2 or more (%(default)s)"
    add("--batch_size", type=cli.positive, default=8, help=about)
    add("--lr_start", type=cli.amount, default=8e-4, help="learning rate at the start (default: %(default)s)")
    add("--lr_end", type=cli.amount, default=1e-5, help="learning rate at the end of the cosine (default: %(default)s)")
    about = "precision of the convolutions (default: what the device has instructions for)"
    add("--amp", choices=["auto", *AMP], default="auto", help=about)
    add("--compile", action="store_true", help="torch.compile the network: takes minutes per crop size on a CPU")
    add("--ema", type=cli.decay, default=0.999, help="decay of the averaged weights (default: %(default)s)")
    add("--clip_grad", type=cli.amount, default=1.0, help="maximum gradient norm (default: %(default)s)")
    add("--optimizer", choices=OPTIMIZERS, default="muon", help="the paper's adamw, or muon: sooner here (%(default)s)")
    add("--seed", type=cli.seed, default=0, help="seed of weights and data (default: %(default)s)")
    add(
        "--workers",
        type=cli.whole,
        default=1,
        help="worker processes that make batches; on a GPU, only their footage (%(default)s)",
    )
    add("--eval_iterations", type=cli.positive, default=1000, help="iterations between validations (%(default)s)")
    add("--log_path", type=Path, default=Path("runs/synthetic"), help="folder of the run (default: %(default)s)")
    add("--log_every", type=cli.positive, default=100, help="iterations between log lines (%(default)s)")
    add("--save_every", type=cli.amount, default=2.0, help="minutes between checkpoints (default: %(default)s)")
    about = "resume the run in --log_path"
    add("--resume", choices=["auto"], nargs="?", const="auto", help=about)
    distributed.add_options(options)
    cli.add_device(options)
    return options


if __name__ == "__main__":
    cli.run(main, parser())
