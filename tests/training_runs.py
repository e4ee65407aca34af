"""Runs of the training script as people start them, for the tests of what becomes of them: a set, a run that was not
interrupted, and how to compare."""

import csv
import time

import numpy as np
import torch
from conftest import formula_image
from processes import begin, torchrun

import train_vimeo90k
from utils.flow_files import write_flow
from utils.io import to_uint8, write_image

NAME = "IFRNet_XS"  # see conftest.small_network


def write_training_set(root):
    """Nine triplets of smooth pictures that move two pixels a frame, with their flow: eight to train on, the last to
    validate on, beside two smaller ones in a list of their own."""
    names = [f"00001/{k:04}" for k in range(1, 12)]
    for seed, name in enumerate(names):
        picture = to_uint8(formula_image(48 if seed < 10 else 32, 80, seed))
        for k in range(3):
            write_image(root / "sequences" / name / f"im{k + 1}.png", picture[:, 4 - 2 * k : 68 - 2 * k])
        for k, dx in ((0, -2), (1, 2)):
            write_flow(root / "flow" / name / f"flow_t{k}.flo", np.float32([dx, 0]) * np.ones((48, 64, 1), np.float32))
    (root / "tri_trainlist.txt").write_text("\n".join(names[:9]))
    (root / "val.txt").write_text("\n".join(names[8:]))
    return root


def typed_options(vimeo, log_path, *options):
    fixed = ["--data", vimeo, "--model_name", NAME, "--crop", 32, "--lr_start", 1e-3, "--workers", 0, "--device", "cpu"]
    return [str(word) for word in (*fixed, "--log_path", log_path, *options)]


def train_here(*args):
    """A run in this process: no start to wait for, and errors as they are raised."""
    train_vimeo90k.main(train_vimeo90k.parser().parse_args(typed_options(*args)))


def weights_and_all(log_path):
    return torch.load(log_path / NAME / "latest.pth", weights_only=True)


def weights(log_path):
    return weights_and_all(log_path)["model"]


def write_whole_run(vimeo, folder):
    """6 epochs of two steps of four, on one process."""
    options = ["--epochs", 6, "--batch_size", 4, "--log_every", 1, "--val_list", vimeo / "val.txt"]
    process = begin("train_vimeo90k", *typed_options(vimeo, folder, *options), log=folder / "said.txt")
    process.join()
    assert process.exitcode == 0, (folder / "said.txt").read_text()
    return folder


def rows(folder):
    """The numbers that a run recorded."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def validations(folder):
    return [float(row["psnr"]) for row in rows(folder / NAME) if row["psnr"]]


def launch(log, launcher, *args):
    """torchrun in the background, with the options `launcher`; it and its ranks write to the file `log`."""
    return begin(*launcher, "train_vimeo90k", *typed_options(*args), log=log, work=torchrun)


def wait_for(condition, process, log):
    while not condition():
        assert process.is_alive(), log.read_text()
        time.sleep(0.002)


def assert_same(one, two, tolerance=0.0):
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=tolerance, rtol=0)
