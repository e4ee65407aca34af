"""Train IFRNet for 8x interpolation, at any time, on GoPro (the paper's recipe: 4 processes x 2 windows, 600 epochs).

    python train_gopro.py --model_name IFRNet
    torchrun --nproc_per_node=4 train_gopro.py --model_name IFRNet_L --epochs 600 --batch_size 2
    python -m torch.distributed.launch --nproc_per_node=4 train_gopro.py --world_size 4 --model_name 'IFRNet_L' \\
        --epochs 600 --batch_size 2 --lr_start 1e-4 --lr_end 1e-5
    python train_gopro.py --data clips:FOLDER --model_name IFRNet_S     (your own videos and folders of frames)

One step predicts all seven frames between the first and the last of a window, which are encoded only once. There is no
flow distillation. A run can be stopped at any time and continues with --resume auto.
"""

import argparse

import torch

import models
from datasets import Sample, clips, gopro
from datasets.transforms import Augment, finish
from losses import ifrnet_loss
from utils import cli, distributed, epochs

PAPER_EPOCHS, PAPER_STEP = 600, 8  # windows a step


def loss(out: models.Interpolation, batch: Sample, progress: float) -> dict[str, torch.Tensor]:
    """The paper's loss without distillation: 8x has no teacher."""
    return {name: term for name, term in ifrnet_loss(out, batch.imgt).items() if name != "dis"}


def main(args: argparse.Namespace) -> None:
    with distributed.ranks(args) as device:
        train, val, paper = windows(args)
        train_set = clips.Windows(train, Augment(args.crop, args.seed))
        val_set = clips.Windows(val, limit=gopro.VALIDATION_SIZE)
        torch.manual_seed(args.seed)
        model = models.build(args.model_name, args.activation)
        epochs.train(args, device, model, train_set, val_set, finish, loss, paper)


def windows(args: argparse.Namespace) -> tuple[list, list, int | None]:
    """Windows to train on, windows to validate on, and the paper's iterations if this is the paper's set."""
    held = args.val_list and epochs.read_names(args.val_list)
    if folder := epochs.clips_folder(args):
        return *clips.split(folder, gopro.LENGTH, args.clip_stride, args.crop, args.clip_longest, held), None
    every = gopro.windows(args.data)
    train, val = epochs.split(every, held and gopro.windows(args.data, held))
    return train, val, PAPER_EPOCHS * len(every) // PAPER_STEP


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    about = "folder of the set, or clips:FOLDER (default: %(default)s)"
    parser.add_argument("--data", default=str(cli.DATA / "GOPRO"), help=about)
    epochs.add_options(parser, epochs=600, batch_size=2, eval_interval=8, recipe="gopro")
    epochs.add_clip_options(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, parser())
