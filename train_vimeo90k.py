"""Train IFRNet for 2x interpolation on Vimeo90K (the paper's recipe: 4 processes x 6 samples, 300 epochs).

    python train_vimeo90k.py --model_name IFRNet
    torchrun --nproc_per_node=4 train_vimeo90k.py --model_name IFRNet --epochs 300 --batch_size 6
    python -m torch.distributed.launch --nproc_per_node=4 train_vimeo90k.py --world_size 4 --model_name 'IFRNet' \\
        --epochs 300 --batch_size 6 --lr_start 1e-4 --lr_end 1e-5
    python train_vimeo90k.py --data clips:FOLDER --model_name IFRNet_S     (your own videos and folders of frames)
    python -m datasets.packed && python train_vimeo90k.py --data data/vimeo_packed --cache gpu    (nothing to decode)

Several machines: run the same line on each, with its own --node_rank, and --log_path on a shared disk. Under Slurm,
srun starts it once per machine:

    torchrun --nnodes=2 --node_rank=0 --master_addr=HOST --master_port=29500 --nproc_per_node=4 \\
        --max-restarts=3 train_vimeo90k.py --batch_size 3 --resume auto
    srun --nodes=2 --ntasks-per-node=1 --gpus-per-node=4 bash -c 'torchrun --nnodes=$SLURM_NNODES \\
        --node_rank=$SLURM_NODEID --master_addr=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) \\
        --master_port=29500 --nproc_per_node=4 train_vimeo90k.py --batch_size 3 --resume auto'

The teacher's flow is read from the files of generate_flow.py. Without them there is no flow distillation, unless
--teacher is given: it estimates flow for every batch, which needs no disk space, but makes steps slower and sees only
the crops. A run can be stopped at any time and continues with --resume auto.
"""

import argparse
from collections.abc import Callable

import torch
from torch.utils.data import Dataset

import models
import models.flow
from datasets import Sample, clips
from datasets.packed import Packed, Resident, is_packed, read_index
from datasets.transforms import Augment, finish
from datasets.vimeo90k import FRAMES, Vimeo90K, read_list
from losses import ifrnet_loss
from utils import cli, distributed, epochs

PAPER_TRIPLETS = 51_313
PAPER_ITERATIONS = 641_400  # 300 epochs, 24 triplets per step


def loss_with(teacher: models.flow.Teacher | None) -> Callable[..., dict[str, torch.Tensor]]:
    """The loss, with flow that `teacher` estimates for each batch, or without one, with the samples' flow."""

    def loss(out: models.Interpolation, batch: Sample, progress: float) -> dict[str, torch.Tensor]:
        flow = models.flow.labels(teacher, batch.img0, batch.imgt, batch.img1) if teacher else batch.flow
        return ifrnet_loss(out, batch.imgt, flow)

    return loss


def main(args: argparse.Namespace) -> None:
    with distributed.ranks(args) as device:
        if args.teacher_weights and not args.teacher:
            raise ValueError(f"--teacher_weights {args.teacher_weights} needs --teacher, the network they belong to")
        teacher = models.flow.build(args.teacher, args.teacher_weights, device) if args.teacher else None
        train_set, val_set, paper = sets(args, device, flow=False if teacher else None)
        if not (teacher or getattr(train_set, "flow", False)):
            ways = "--teacher" if args.data.startswith(epochs.CLIPS) else "generate_flow.py, --teacher"
            distributed.say(f"no teacher flow in {args.data}: training without flow distillation (see {ways})")
        torch.manual_seed(args.seed)
        model = without_time(models.build(args.model_name, args.activation))
        epochs.train(args, device, model, train_set, val_set, finish, loss_with(teacher), paper)


def without_time(model: models.IFRNet) -> models.IFRNet:
    """The network with the input weights of the t plane set to zero and kept there, as in the published weights.

    IFRNet.any_time then distinguishes weights trained at t = 0.5 only from those that know other times. When the latter
    are loaded to start from, the t plane's effect at t = 0.5 becomes part of the bias: results change at borders only.
    """
    model.decoder4.convblock[0][0].weight.data[:, -1] = 0
    model.decoder4.convblock[0][0].weight.register_hook(without_last)
    model.register_load_state_dict_post_hook(lambda loaded, _: fold_time(loaded))
    return model


def without_last(gradient: torch.Tensor) -> torch.Tensor:
    return torch.cat([gradient[:, :-1], torch.zeros_like(gradient[:, -1:])], 1)


def fold_time(model: models.IFRNet) -> None:
    first = model.decoder4.convblock[0][0]
    first.bias.data += 0.5 * first.weight.data[:, -1].sum((1, 2))
    first.weight.data[:, -1] = 0


def sets(args: argparse.Namespace, device: torch.device, flow: bool | None) -> tuple[Dataset, Dataset, int | None]:
    """The training set, the validation set, and the paper's iterations if this is the paper's set."""
    augment, held = Augment(args.crop, args.seed), args.val_list
    if args.cache == "gpu" and not is_packed(args.data):
        raise ValueError(f"--cache gpu needs a packed set, not {args.data}; make one with python -m datasets.packed")
    if folder := epochs.clips_folder(args):
        names = held and epochs.read_names(held)
        train, val = clips.split(folder, len(FRAMES), args.clip_stride, args.crop, args.clip_longest, names)
        return clips.Windows(train, augment), clips.Windows(val), None
    if is_packed(args.data):
        train, val = epochs.split(read_index(args.data)["names"], held and epochs.read_names(held))
        train_set, val_set = Packed(args.data, train, augment, flow), Packed(args.data, val, flow=False)
        train_set = Resident(train_set, device) if args.cache == "gpu" else train_set
    else:
        train, val = epochs.split(read_list(args.data), held and read_list(args.data, held))
        train_set, val_set = Vimeo90K(args.data, train, augment, flow), Vimeo90K(args.data, val, flow=False)
    whole = len(train) + len(val) > 0.9 * PAPER_TRIPLETS
    return train_set, val_set, PAPER_ITERATIONS if whole else None


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    about = "folder of the set, packed or not, or clips:FOLDER (default: %(default)s)"
    parser.add_argument("--data", default=str(cli.DATA / "vimeo_triplet"), help=about)
    parser.add_argument(
        "--cache", choices=["gpu"], help="gpu: hold a packed set in GPU memory (default: read from disk)"
    )
    parser.add_argument("--teacher", choices=models.flow.TEACHERS, help="estimate flow per batch, do not read it")
    parser.add_argument("--teacher_weights", help="the teacher's weights file (default: its own)")
    epochs.add_options(parser, epochs=300, batch_size=6, eval_interval=1, recipe="vimeo90k")
    epochs.add_clip_options(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, parser())
