"""What the tests of benchmarks share: frames made by formula, a benchmark run in this process, PSNR by hand."""

import json
from functools import partial

import numpy as np
from conftest import formula_image

from benchmarks import common, store
from utils import io


def frame(seed, height=48, width=64):
    return io.to_uint8(formula_image(height, width, seed))


def score(typed, benchmark, root, out, *options, parser=None):
    """Run a benchmark as if its command were typed."""
    words = ["--data", root, "--out", out, "--device", "cpu", "--workers", 0, *options]
    return typed(partial(common.run, benchmark), parser or common.parser(""), *words)


def result(out, name):
    return json.loads((out / f"{name}.json").read_text())


def unscored(**about):
    """A result of no cases."""
    texts = ("model", "protocol", "precision", "device", "data", "cases_sha256", "command")
    others = {"benchmark": "Xiph", "metrics": [], "other_scale": None, "shown": [], "versions": {}}
    return dict.fromkeys(texts, "") | others | store.summary("Xiph", "", [], []) | about


def psnr_by_hand(prediction, target):
    """Of pictures with values in [0, 1]."""
    return 10 * np.log10(1 / np.mean((prediction.astype(np.float64) - target.astype(np.float64)) ** 2))
