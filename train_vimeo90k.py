"""Train IFRNet for 2x interpolation on Vimeo90K (the paper's recipe: 4 processes x 6 samples, 300 epochs).

    python train_vimeo90k.py --model_name IFRNet
    torchrun --nproc_per_node=4 train_vimeo90k.py --model_name IFRNet --epochs 300 --batch_size 6
    python -m torch.distributed.launch --nproc_per_node=4 train_vimeo90k.py --world_size 4 --model_name 'IFRNet' \\
        --epochs 300 --batch_size 6 --lr_start 1e-4 --lr_end 1e-5
    python train_vimeo90k.py --data clips:FOLDER --model_name IFRNet_S     (videos and folders of frames of one's own)

The teacher's flow is read where generate_flow.py has put it; without it there is no flow distillation, unless --teacher
estimates it for every batch: no disk, but a slower step, and on the crops alone. A run can be stopped at any time and
goes on with --resume auto.
"""

from collections.abc import Callable

import torch
from torch.utils.data import Dataset

import models
import models.flow
from datasets import Sample, clips
from datasets.transforms import Augment
from datasets.vimeo90k import FRAMES, Vimeo90K, read_list
from losses import ifrnet_loss
from utils import cli, distributed, epochs

PAPER_ITERATIONS = 641_400  # 300 epochs of 51,313 triplets, 24 a step


def loss_with(teacher: models.flow.Teacher | None) -> Callable[..., dict[str, torch.Tensor]]:
    """The loss under a teacher that estimates as it goes, or with the flow of the samples."""

    def loss(out: models.Interpolation, batch: Sample, progress: float) -> dict[str, torch.Tensor]:
        flow = models.flow.labels(teacher, batch.img0, batch.imgt, batch.img1) if teacher else batch.flow
        return ifrnet_loss(out, batch.imgt, flow)

    return loss


def main(args) -> None:
    with distributed.ranks(args) as device:
        if args.teacher_weights and not args.teacher:
            raise ValueError(f"--teacher_weights {args.teacher_weights} needs --teacher, the network that they are of")
        teacher = models.flow.build(args.teacher, args.teacher_weights, device) if args.teacher else None
        train_set, val_set, paper = sets(args, flow=False if teacher else None)
        if distributed.is_main() and not (teacher or getattr(train_set, "flow", False)):
            print(
                f"no teacher flow in {args.data}: training without flow distillation (see generate_flow.py, --teacher)"
            )
        torch.manual_seed(args.seed)
        model = models.build(args.model_name, args.activation)
        epochs.train(args, device, model, train_set, val_set, loss_with(teacher), paper)


def sets(args, flow: bool | None) -> tuple[Dataset, Dataset, int | None]:
    """What to train on, what to validate on, and the paper's iterations where this is the paper's set."""
    augment, held = Augment(args.crop, args.seed), args.val_list
    if args.data.startswith(epochs.CLIPS):
        folder, names = args.data.removeprefix(epochs.CLIPS), held and epochs.read_names(held)
        train, val = clips.split(folder, len(FRAMES), args.clip_stride, args.crop, args.clip_longest, names)
        return clips.Windows(train, augment), clips.Windows(val), None
    train, val = epochs.split(read_list(args.data), held and read_list(args.data, held))
    return Vimeo90K(args.data, train, augment, flow), Vimeo90K(args.data, val, flow=False), PAPER_ITERATIONS


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--data", default="data/vimeo_triplet", help="folder of the set, or clips:FOLDER (%(default)s)")
    parser.add_argument("--teacher", choices=models.flow.TEACHERS, help="estimate the flow of every batch, not read it")
    parser.add_argument("--teacher_weights", help="the teacher's weights file (default: its own)")
    epochs.add_options(parser, epochs=300, batch_size=6, eval_interval=1, log_path="runs/vimeo90k")
    return parser


if __name__ == "__main__":
    cli.run(main, parser())
