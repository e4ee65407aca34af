"""The recipes on other data than Vimeo90K's triplets: a set of one's own, GoPro's videos, folders of clips."""

import os
import re
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, formula_image
from training_runs import (
    NAME,
    rows,
    validations,
    weights_and_all,
)

import models
import train_gopro
import train_vimeo90k
from datasets import Sample, gopro
from losses.terms import charbonnier
from utils import cli, epochs
from utils.io import to_uint8, write_image

pytestmark = pytest.mark.usefixtures("one_thread", "small_network")


def write_frames(folder, seed, count=25):
    """A smooth picture that moves a pixel a frame."""
    picture = to_uint8(formula_image(48, 64 + count, seed))
    for k in range(count):
        write_image(folder / f"{k:06}.png", picture[:, k : k + 64])


def run(script, *options):
    script.main(script.parser().parse_args([str(option) for option in options]))


class Plain(torch.utils.data.Dataset):
    """A set of one's own, as CONTRIBUTING.md describes it: unaugmented Samples, by i or (i, epoch)."""

    def __init__(self, seeds):
        self.seeds, self.asked = seeds, []

    def __len__(self):
        return len(self.seeds)

    def __getitem__(self, key):
        self.asked.append(key)
        i, _ = key if isinstance(key, tuple) else (key, 0)
        frames = (formula_image(32, 32, self.seeds[i] + k) for k in range(3))
        return Sample(*frames, torch.tensor(0.5), torch.full((4, 32, 32), torch.nan))


def test_a_set_of_ones_own_is_trained_on_by_index_and_epoch_and_validated_by_index(tmp_path):
    train_set, val_set = Plain(range(4)), Plain([9])

    def trained(*words):
        fixed = ["--model_name", NAME, "--workers", "0", "--device", "cpu", "--log_path", str(tmp_path)]
        args = train_vimeo90k.parser().parse_args([*fixed, *words])
        to_sample, loss = lambda batch, _: batch, train_vimeo90k.loss_with(None)
        epochs.train(args, torch.device("cpu"), models.build(NAME), train_set, val_set, to_sample, loss, None)

    trained("--epochs", "2", "--batch_size", "2")
    assert sorted(train_set.asked) == [(i, epoch) for i in range(4) for epoch in range(2)]
    assert set(val_set.asked) == {0} and weights_and_all(tmp_path)["iteration"] == 4
    train_set.asked.clear()
    trained("--iterations", "6", "--batch_size", "1", "--resume", "auto")  # the third epoch, whatever the size of steps
    assert [epoch for _, epoch in train_set.asked] == [2, 2]


class Flowless(torch.nn.Module):
    """A network of another kind, as CONTRIBUTING.md describes it."""

    def __init__(self):
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(0.9))

    def forward(self, img0, img1, t, imgt=None):
        return models.Interpolation(torch.lerp(img1, img0, self.share), (), (), None)


def test_a_network_of_another_kind_without_flow_is_trained_and_validated_by_a_recipe_of_its_own(tmp_path):
    parser = train_vimeo90k.parser()
    parser.set_defaults(model_name="Mine", recipe="own", log_path=str(tmp_path))
    args = parser.parse_args("--iterations 30 --batch_size 2 --lr_start 0.05 --workers 0 --device cpu".split())

    def loss(out, batch, progress):
        return {"rec": charbonnier(out.imgt - batch.imgt)}

    model, to_sample = Flowless(), lambda batch, _: batch
    epochs.train(args, torch.device("cpu"), model, Plain(range(4)), Plain([9]), to_sample, loss, None)
    assert abs(model.share.item() - 0.9) > 0.1
    args.iterations, args.resume, changed = 40, "auto", Flowless()
    changed.more = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r'Mine .*; its code has changed since \(Missing key.*"more".*\); begin anew'):
        epochs.train(args, torch.device("cpu"), changed, Plain(range(4)), Plain([9]), to_sample, loss, None)
    best = torch.load(tmp_path / "Mine" / "best.pth", weights_only=True)
    assert best.keys() == model.state_dict().keys() and list((tmp_path / "Mine").glob("events.*"))


def test_the_recipe_in_the_rules_trains_a_network_of_another_kind_and_refuses_what_is_for_ifrnet(
    vimeo, tmp_path, monkeypatch, typed
):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    monkeypatch.setitem(sys.modules, "models.mine", SimpleNamespace(Mine=Flowless))
    script = {"__name__": "train_mine"}
    exec(code, script)
    assert script["parser"]().description.startswith("Train Mine")
    words = ["--data", vimeo, "--log_path", tmp_path, "--crop", 32, "--workers", 0, "--device", "cpu"]
    words += ["--iterations", 2, "--batch_size", 2]
    for option in ("--model_name", NAME), ("--activation", "gelu"), ("--teacher", "dis"):
        refused = typed(script["main"], script["parser"](), *words, *option)
        assert refused.status == 2 and f"{' '.join(option)}: is for IFRNet; leave it out" in refused.err
    assert typed(script["main"], script["parser"](), *words).status == 0
    assert (tmp_path / "Mine" / "best.pth").is_file()


def test_a_recipe_of_ones_own_has_no_options_about_clips_unless_it_takes_clips(typed):
    """They would have no effect, and nothing would say so."""
    options = cli.Parser("")
    epochs.add_options(options, epochs=1, batch_size=1, eval_interval=1, recipe="own")
    done = typed(lambda args: None, options, "--clip_stride", 2)
    assert done.status == 2 and "unknown option --clip_stride" in done.err
    epochs.add_clip_options(options)
    assert typed(lambda args: None, options, "--clip_stride", 2, "--clip_longest", 320).status == 0


@pytest.mark.parametrize("layout", ["train", ""])
def test_gopro_trains_on_all_seven_frames_without_distillation(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(gopro, "windows", partial(gopro.windows, videos=gopro.TRAIN_VIDEOS[:2]))
    for seed, video in enumerate(gopro.TRAIN_VIDEOS[:2]):
        write_frames(tmp_path / "set" / layout / video, seed)
    options = ["--data", tmp_path / "set", "--model_name", NAME, "--crop", 32, "--workers", 0, "--device", "cpu"]
    run(train_gopro, *options, "--log_path", tmp_path, "--iterations", 3, "--batch_size", 2, "--log_every", 3)
    row = rows(tmp_path / NAME)[0]
    loss, rec, geo = (float(row[name]) for name in ("loss", "rec", "geo"))
    assert loss == pytest.approx(rec + geo, rel=1e-3) and geo > 0 and "dis" not in row
    assert validations(tmp_path)[-1] > 5


def test_a_term_that_is_added_to_the_loss_counts_on_gopro_too(monkeypatch):
    terms = {"rec": 1.0, "geo": 2.0, "dis": 0.0, "more": 3.0}
    monkeypatch.setattr(train_gopro, "ifrnet_loss", lambda out, imgt: terms)
    sample = Plain([0])[0]
    assert train_gopro.loss(None, sample, 0.5) == {"rec": 1.0, "geo": 2.0, "more": 3.0}


@pytest.mark.parametrize("script", [train_vimeo90k, train_gopro], ids=lambda script: script.__name__)
def test_both_scripts_train_on_a_folder_of_clips(tmp_path, own_cache, capsys, script):
    for seed, name in enumerate(["a", "b"]):
        write_frames(tmp_path / "clips" / name, seed)
    data = ["--data", f"clips:{tmp_path / 'clips'}", "--clip_stride", 2, "--model_name", NAME, "--crop", 32]
    run(script, *data, "--workers", 0, "--device", "cpu", "--log_path", tmp_path, "--iterations", 2, "--batch_size", 2)
    assert models.load(tmp_path / NAME / "best.pth")
    said = capsys.readouterr().out
    assert "generate_flow.py" not in said  # which makes flow for triplets alone
    assert ("without flow distillation (see --teacher)" in said) == (script is train_vimeo90k)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are text here, on Linux any bytes")
def test_a_clip_to_train_on_may_have_a_name_that_is_no_utf_8(tmp_path, own_cache):
    for seed, name in enumerate([b"caf\xe9", b"b"]):
        write_frames(tmp_path / "clips" / os.fsdecode(name), seed)
    data = ["--data", f"clips:{tmp_path / 'clips'}", "--model_name", NAME, "--crop", 32, "--batch_size", 1]
    run(train_vimeo90k, *data, "--workers", 0, "--device", "cpu", "--log_path", tmp_path, "--iterations", 1)
    assert models.load(tmp_path / NAME / "best.pth")
