"""Train IFRNet for 2x interpolation on Vimeo90K (the paper's recipe: 4 processes x 6 samples, 300 epochs).

    python train_vimeo90k.py --model_name IFRNet
    torchrun --nproc_per_node=4 train_vimeo90k.py --model_name IFRNet --epochs 300 --batch_size 6
    python -m torch.distributed.launch --nproc_per_node=4 train_vimeo90k.py --world_size 4 --model_name 'IFRNet' \\
        --epochs 300 --batch_size 6 --lr_start 1e-4 --lr_end 1e-5

The teacher's flow is read where generate_flow.py has put it; without it there is no flow distillation. A run can be
stopped at any time and goes on with --resume auto.
"""

import torch

import models
from datasets import Sample
from datasets.transforms import Augment
from datasets.vimeo90k import TRAIN_LIST, Vimeo90K, read_list
from losses import ifrnet_loss
from utils import cli, distributed, epochs

PAPER_ITERATIONS = 641_400  # 300 epochs of 51,313 triplets, 24 a step


def loss(out: models.Interpolation, batch: Sample, progress: float) -> dict[str, torch.Tensor]:
    return ifrnet_loss(out, batch.imgt, batch.flow)


def main(args) -> None:
    with distributed.ranks(args) as device:
        train, val = epochs.split(read_list(args.data), args.val_list and read_list(args.data, args.val_list))
        train_set = Vimeo90K(args.data, train, Augment(args.crop, args.seed))
        val_set = Vimeo90K(args.data, val, flow=False)
        if distributed.is_main() and not train_set.flow:
            print(f"no teacher flow in {train_set.root / 'flow'}: training without distillation (see generate_flow.py)")
        torch.manual_seed(args.seed)
        model = models.build(args.model_name, args.activation)
        epochs.train(args, device, model, train_set, val_set, loss, PAPER_ITERATIONS)


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--data", default="data/vimeo_triplet", help=f"folder of {TRAIN_LIST} (default: %(default)s)")
    parser.add_argument(
        "--model_name", choices=models.VARIANTS, default="IFRNet", help="network (default: %(default)s)"
    )
    parser.add_argument("--activation", choices=models.ACTIVATIONS, default="prelu", help="default: the paper's prelu")
    epochs.add_options(parser, epochs=300, batch_size=6, eval_interval=1, log_path="runs/vimeo90k")
    return parser


if __name__ == "__main__":
    cli.run(main, parser())
