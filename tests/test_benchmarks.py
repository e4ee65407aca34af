"""Benchmarks on small replicas of their data: scores computed by hand, any number of ranks, restarts, broken cases."""

import hashlib
import json
import multiprocessing
import pickle
import re
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
import torchvision
from processes import begin, run_ranks
from scoring import frame, psnr_by_hand, result, score

import models
from benchmarks import Adobe240, Vimeo90K, cases, common, evaluation, store
from utils import cli, io, metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def vimeo(tmp_path):
    """Seven triplets of 64x48 in Vimeo90K's layout, blank lines in the list."""
    root = tmp_path / "vimeo_triplet"
    names = [f"00001/{k:04d}" for k in range(1, 8)]
    for k, name in enumerate(names):
        for number in range(3):
            io.write_image(root / "sequences" / name / f"im{number + 1}.png", frame(3 * k + number))
    (root / "tri_testlist.txt").write_text("\n".join(names[:4]) + "\n\n" + "\n".join(names[4:]) + "\n\n")
    return root


def triplet(root, k):
    """Frames as floats."""
    return [io.read_image(root / f"sequences/00001/{k:04d}/im{i}.png") / 255 for i in (1, 2, 3)]


def test_averaging_scores_what_a_calculation_by_hand_gives(vimeo, tmp_path, typed):
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "out", "--model_name", "average")
    assert done.status == 0, done.err
    expected = [psnr_by_hand((a + b) / 2, truth) for a, truth, b in (triplet(vimeo, k) for k in range(1, 8))]
    got = result(tmp_path / "out", "Vimeo90K-average")
    assert [sample["name"] for sample in got["samples"]["test"]] == [f"00001/{k:04d}" for k in range(1, 8)]
    np.testing.assert_allclose([sample["psnr"][0] for sample in got["samples"]["test"]], expected, atol=1e-4)
    assert got["average"]["test"]["psnr"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert got["average"]["test"]["cases"] == 7 and got["average"]["test"]["left_out"] == 0
    assert re.search(rf"^average +test +7 +{np.mean(expected):.2f} +0\.\d{{4}} +-$", done.out, re.M), done.out


def test_scores_of_other_cases_do_not_take_the_place_of_the_first(vimeo, tmp_path, typed):
    out, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(vimeo, other)
    (other / "tri_testlist.txt").write_text("00001/0001\n")
    for root, *options in ((vimeo,), (other,), (other,), (vimeo, "--metrics", "ie")):
        score(typed, Vimeo90K.BENCHMARK, root, out, "--model_name", "average", *options)
    first, second = sorted(out.glob("*.json"), key=lambda path: len(path.stem))
    assert result(out, first.stem)["average"]["test"]["cases"] == 7 and "ie" in result(out, first.stem)["metrics"]
    assert result(out, second.stem)["average"]["test"]["cases"] == 1


def test_scores_of_other_weights_do_not_take_the_place_of_the_first(vimeo, weights, tmp_path, typed, monkeypatch):
    for name, change in (("first", 0.0), ("second", 0.1)):
        state = torch.load(weights, weights_only=True)
        state["decoder1.convblock.2.bias"] += change
        (tmp_path / name).mkdir()
        torch.save(state, tmp_path / name / "IFRNet_S.pth")
        monkeypatch.setattr(models, "CHECKPOINTS", tmp_path / name)
        assert score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "out", "--limit", 1).status == 0
    found = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("Vimeo90K-IFRNet_S-first1*.json")]
    assert len({each["checkpoint_sha256"] for each in found}) == len(found) == 2


def test_a_network_is_scored_unrounded_and_beside_the_published_number(vimeo, weights, tmp_path, typed):
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path, "--checkpoint", weights, "--metrics", "ie", "ssim_2d")
    sha = hashlib.sha256(weights.read_bytes()).hexdigest()
    got = result(tmp_path, f"Vimeo90K-IFRNet_S-formula-{sha[:8]}")
    assert got["checkpoint_sha256"] == sha and got["parameters"] == 2_803_610 and got["protocol"] == "paper"
    assert re.search(r"^IFRNet_S formula +test +7 .* 35\.59 / 0\.9786$", done.out, re.M), done.out
    call = models.Interpolator(models.load(weights), "cpu")
    a, truth, b = (torch.from_numpy(x).float().movedim(-1, 0) for x in triplet(vimeo, 3))
    pair = call(a, b), truth[None]
    sample = got["samples"]["test"][2]
    for name in ("psnr", "ssim", "ie", "ssim_2d"):
        assert sample[name] == pytest.approx(getattr(metrics, name)(*pair).tolist(), abs=1e-5)


def test_the_weights_of_several_runs_stand_beside_each_other_under_the_names_of_the_runs(
    vimeo, weights, tmp_path, typed
):
    paths = []
    for run, change in (("slow", 0.0), ("quick", 0.1)):
        state = torch.load(weights, weights_only=True)
        state["decoder1.convblock.2.bias"] += change
        paths.append(tmp_path / run / "IFRNet_S" / "best.pth")
        paths[-1].parent.mkdir(parents=True)
        torch.save({"model": state}, paths[-1])
    words = ["--model_name", "average", "--checkpoint", *paths, "--limit", 1]
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "out", *words)
    assert re.findall(r"^(\S+(?: \S+)?) +test ", done.out, re.M) == [
        "average",
        "IFRNet_S slow-best",
        "IFRNet_S quick-best",
    ]
    for run, path in zip(("slow", "quick"), paths):
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        assert result(tmp_path / "out", f"Vimeo90K-IFRNet_S-{run}-best-{sha[:8]}-first1")["checkpoint_sha256"] == sha


def test_a_recorded_command_can_be_typed_without_a_launcher(monkeypatch):
    words = ["a.py", "--world_size", "4", "--data", "a b", "--local-rank=3", "--model_name", "dis", "IFRNet_S"]
    monkeypatch.setattr(sys, "argv", [*words, "--world-size=4", "--scale", "0.5", "--local_rank", "3"])
    assert common.typed() == "python a.py --data 'a b' --model_name dis IFRNet_S --scale 0.5"


def test_the_protocols_round_and_turn(vimeo, weights, tmp_path, typed):
    call = models.Interpolator(models.load(weights), "cpu")
    a, truth, b = (torch.from_numpy(x).float().movedim(-1, 0) for x in triplet(vimeo, 1))
    plain = call(a, b)[0]
    turned = call(a.rot90(2, (1, 2)), b.rot90(2, (1, 2)))[0].rot90(2, (1, 2))
    expected = {"uint8": io.to_uint8(plain) / 255, "ema": io.to_uint8((plain + turned) / 2) / 255}
    for protocol, prediction in expected.items():
        words = ["--checkpoint", weights, "--protocol", protocol, "--limit", 1]
        done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / protocol, *words)
        assert "published numbers are by the paper's protocol" in done.out
        (path,) = (tmp_path / protocol).glob("*.json")
        assert protocol in path.name and "first1" in path.name
        got = json.loads(path.read_text())["average"]["test"]
        assert got["psnr"] == pytest.approx(psnr_by_hand(prediction, truth.movedim(0, -1).numpy()), abs=1e-4)
        assert got["cases"] == 1


def test_published_numbers_of_another_scale_or_of_who_knows_how_many_cases_are_told_apart(
    vimeo, weights, tmp_path, typed
):
    for scale in (1, 0.5):
        words = ["--checkpoint", weights, "--scale", scale, "--limit", 1]
        done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / str(scale), *words)
        assert ("published numbers are not at --scale" in done.out) == (scale == 0.5), "1 is the protocol's own"
    (path,) = (tmp_path / "1").glob("*.json")
    got = json.loads(path.read_text())
    got["average"]["test"]["full"] = None
    assert "published numbers of test are of the whole set; this may not be all of it" in store.table([got])


def test_batches_change_no_score(vimeo, weights, tmp_path, typed):
    """Frames of another size among them do not go through the network with the rest."""
    for i in (1, 2, 3):
        io.write_image(vimeo / f"sequences/00001/0002/im{i}.png", frame(i, 32, 48))
    for size in (1, 4):
        score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / str(size), "--checkpoint", weights, "--batch_size", size)
    one, four = (json.loads(next((tmp_path / size).glob("*.json")).read_text())["samples"]["test"] for size in "14")
    assert [s["name"] for s in one] == [s["name"] for s in four]
    np.testing.assert_allclose([s["psnr"] for s in one], [s["psnr"] for s in four], atol=1e-4)


def test_pictures_read_by_other_processes_score_the_same(vimeo, tmp_path, typed):
    for workers in (0, 2):
        words = ["--model_name", "average", "--batch_size", 2, "--workers", workers]
        assert score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / str(workers), *words).status == 0
    assert files(tmp_path / "0") == files(tmp_path / "2")
    pickle.dumps(cases.Batches(Vimeo90K.BENCHMARK.splits(vimeo, None), 2))  # what spawned workers are given


def test_extra_metrics_stand_in_the_table(vimeo, tmp_path, typed):
    """LPIPS with random weights, in two files of one name, and the warping error: 0 where nothing moves."""
    with torch.device("meta"):
        features = torchvision.models.alexnet(weights=None).features.state_dict()
    features = {f"features.{name}": 0.05 * torch.randn(value.shape) for name, value in features.items()}
    lines = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 192, 384, 256, 256))}
    parts = [tmp_path / "lpips.pth", tmp_path / "lines" / "lpips.pth"]
    parts[1].parent.mkdir()
    for path, state in zip(parts, (features, lines)):
        torch.save(state, path)
    for i in (1, 2, 3):
        io.write_image(vimeo / f"sequences/00001/0001/im{i}.png", frame(0))
    words = ["--model_name", "repeat", "--metrics", "warp", "lpips", "--limit", 2]
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path, *words)
    assert done.status == 2 and "LPIPS needs weights: --lpips_weights" in done.err
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path, *words, "--lpips_weights", *parts)
    assert done.status == 0 and "LPIPS" in done.out and "warp error" in done.out
    got = result(tmp_path, "Vimeo90K-repeat-first2")
    still, moving = got["samples"]["test"]
    assert still["warp"][0] < 1e-9 and moving["warp"][0] > 0 and still["lpips"] == [0] and moving["lpips"][0] > 0
    assert list(got["lpips_weights"]) == ["lpips.pth"]
    assert got["lpips_weights"]["lpips.pth"] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in parts]
    assert got["average"]["test"]["warp"] == pytest.approx(moving["warp"][0] / 2)
    torch.save({name: value / 2 for name, value in lines.items()}, parts[1])
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path, *words, "--lpips_weights", *parts)
    assert done.status == 2 and "its LPIPS, by other weights, would be lost; give another --out" in done.err
    assert result(tmp_path, "Vimeo90K-repeat-first2") == got
    torch.save(lines, parts[1])
    parts = [path.rename(path.with_name("renamed.pth")) for path in parts]
    assert score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path, *words, "--lpips_weights", *parts).status == 0


def test_saved_frames_are_the_predictions(vimeo, tmp_path, typed):
    score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path, "--model_name", "average", "--save_frames", "--limit", 2)
    a, _, b = triplet(vimeo, 2)
    saved = io.read_image(tmp_path / "Vimeo90K-average-first2/test/00001/0002.png")
    assert np.abs(saved - (a + b) / 2 * 255).max() < 0.51


def files(out):
    """All that a run leaves, without the recorded command, which names its folder."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: re.sub(rb' "command": .*', b"", data) for name, data in found.items()}


def test_one_two_and_three_ranks_give_the_same_file(vimeo, weights, tmp_path, typed):
    """Seven cases in batches of two, which neither two nor three ranks can share equally."""
    words = ["--model_name", "dis", "IFRNet_S", "--checkpoint", weights, "--batch_size", 2]
    plain = ["--data", vimeo, "--device", "cpu", "--workers", 0, *words]
    assert score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "one", *words).status == 0
    for count, name in ((2, "two"), (3, "three")):
        rank = ["benchmarks.Vimeo90K", *plain, "--world_size", count, "--out", tmp_path / name]
        status, said = zip(*run_ranks(tmp_path, *[rank] * count))
        assert not any(status), said
        tables = [len(re.findall(r"^IFRNet_S formula +test +7 ", text, re.M)) for text in said]
        assert tables == [1] + [0] * (count - 1)  # one rank prints
    assert len(list((tmp_path / "one").glob("*.json"))) == 2
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")


def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_file(vimeo, weights, tmp_path, typed):
    for k in range(8, 48):  # enough work to be killed before the end
        (vimeo / f"sequences/00001/{k:04d}").symlink_to(vimeo / f"sequences/00001/{1 + k % 7:04d}")
    with (vimeo / "tri_testlist.txt").open("a") as file:
        file.writelines(f"00001/{k:04d}\n" for k in range(8, 48))
    words = ["--data", vimeo, "--checkpoint", weights, "--device", "cpu", "--workers", 0, "--out", tmp_path / "out"]
    killed = begin("benchmarks.Vimeo90K", *words)
    journals = []
    while killed.is_alive() and not (journals and journals[0].read_text().count("\n") > 3):
        journals = list((tmp_path / "out").glob(".unfinished-*/*.jsonl"))
        time.sleep(0.002)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL, "the run was over before it could be killed"
    with journals[0].open("a") as file:
        file.write('\n[40, [["test", "00001/0041", {"psnr"')  # as if killed in the middle of a line
    out = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "out", "--checkpoint", weights).out
    known = int(
        re.search(r"^IFRNet_S formula: (\d+) of 47 batches were scored before; going on from there$", out, re.M)[1]
    )
    assert 3 <= known < 47
    score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "whole", "--checkpoint", weights)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def undisturbed(image):
    """The image; ValueError in a process that reads for the run and does not leave signals to it."""
    if multiprocessing.parent_process() and any(signal.getsignal(kind) != signal.SIG_IGN for kind in cli.STOPPING):
        raise ValueError("a signal to all would end the reading processes")
    return image


def test_a_signal_to_all_processes_is_none_to_those_that_read(vimeo, tmp_path, typed):
    def splits(*args):
        return [split._replace(view=undisturbed) for split in Vimeo90K.BENCHMARK.splits(*args)]

    benchmark = Vimeo90K.BENCHMARK._replace(splits=splits)
    done = score(typed, benchmark, vimeo, tmp_path / "out", "--model_name", "average", "--workers", 1)
    assert done.status == 0, done.err


def test_a_process_reads_two_batches_ahead_for_those_of_4k_take_hundreds_of_megabytes(
    vimeo, tmp_path, typed, monkeypatch
):
    load, score_batch, drawn, found = evaluation.load, evaluation.score_batch, [], []

    def noted(dataset, order, *args, **options):
        return load(dataset, (drawn.append(keys) or keys for keys in order), *args, **options)

    def counted(*args):
        found.append(len(drawn))
        return score_batch(*args)

    monkeypatch.setattr(evaluation, "load", noted)
    monkeypatch.setattr(evaluation, "score_batch", counted)
    score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "out", "--model_name", "average", "--workers", 1)
    assert found == [3, 4, 5, 6, 7, 7, 7]  # this one and two more


def test_a_broken_case_stops_the_run_by_name_and_what_was_scored_is_kept(vimeo, tmp_path, typed):
    path = vimeo / "sequences/00001/0004/im2.png"
    data = path.read_bytes()
    path.write_bytes(data[:500])
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "out", "--model_name", "average")
    assert done.status == 2 and not list((tmp_path / "out").glob("*.json"))
    assert re.search(r"0004/im2.png: .* cut short .*\(case 00001/0004\); --skip_broken leaves such cases out", done.err)
    path.write_bytes(data)
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "out", "--model_name", "average")
    assert done.status == 0 and "average: 3 of 7 batches were scored before" in done.out
    score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "whole", "--model_name", "average")
    assert (
        result(tmp_path / "out", "Vimeo90K-average")["samples"]
        == result(tmp_path / "whole", "Vimeo90K-average")["samples"]
    )


def test_what_was_scored_is_kept_for_a_run_that_leaves_broken_cases_or_other_models_out(vimeo, tmp_path, typed):
    def run(out, *words):
        return score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / out, "--batch_size", 2, *words)

    path = vimeo / "sequences/00001/0007/im2.png"
    path.write_bytes(path.read_bytes()[:500])
    assert run("out", "--model_name", "repeat", "average").status == 2
    done = run("out", "--model_name", "average", "repeat", "--skip_broken")
    assert done.status == 0 and done.out.startswith("repeat: 3 of 4 batches were scored before")
    assert run("whole", "--model_name", "average", "repeat", "--skip_broken").status == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole"), "and nothing of the unfinished runs is left"


def test_models_that_were_done_before_a_stop_are_not_scored_again(vimeo, tmp_path, typed, monkeypatch):
    words = [tmp_path / "out", "--model_name", "repeat", "average"]
    write = store.write

    def write_one(path, result):
        if "average" in path.stem:
            raise OSError(28, "No space left on device", str(path))
        write(path, result)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", write_one)
        assert score(typed, Vimeo90K.BENCHMARK, vimeo, *words).status == 2
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, *words)
    assert "repeat: 7 of 7 batches" in done.out and "average: 7 of 7 batches" in done.out
    assert not list((tmp_path / "out").glob(".unfinished-*"))


def test_pictures_that_changed_since_a_run_was_stopped_are_scored_anew(vimeo, tmp_path, typed):
    words = [tmp_path / "out", "--model_name", "average"]
    path = vimeo / "sequences/00001/0004/im2.png"
    path.write_bytes(path.read_bytes()[:500])
    assert score(typed, Vimeo90K.BENCHMARK, vimeo, *words).status == 2
    io.write_image(path, frame(3))
    io.write_image(vimeo / "sequences/00001/0002/im2.png", frame(4))
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, *words)
    assert done.status == 0 and "average: 2 of 7 batches were scored before" in done.out
    score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "whole", *words[1:])
    names = [result(tmp_path / out, "Vimeo90K-average")["samples"] for out in ("out", "whole")]
    assert names[0] == names[1]


def test_a_case_that_was_mended_is_left_out_no_longer(vimeo, tmp_path, typed, monkeypatch):
    words = [tmp_path, "--model_name", "average", "--skip_broken"]
    path = vimeo / "sequences/00001/0002/im2.png"
    data = path.read_bytes()
    path.write_bytes(data[:500])
    with monkeypatch.context() as patch:
        patch.setattr(store, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device", "x")))
        assert score(typed, Vimeo90K.BENCHMARK, vimeo, *words).status == 2
    path.write_bytes(data)
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, *words)
    assert "6 of 7 batches were scored before" in done.out and "left out" not in done.out


def test_a_set_that_is_broken_throughout_has_no_score(vimeo, tmp_path, typed):
    for path in vimeo.glob("sequences/00001/*/im2.png"):
        path.unlink()
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path, "--model_name", "average", "--skip_broken")
    assert done.status == 2 and "every case is broken; the first: " in done.err and "im2.png" in done.err
    assert not list(tmp_path.glob("*.json"))


def test_metrics_that_were_scored_are_not_lost_to_a_run_without_them(vimeo, tmp_path, typed):
    words = [tmp_path, "--model_name", "average"]
    assert score(typed, Vimeo90K.BENCHMARK, vimeo, *words, "--metrics", "ie").status == 0
    before = files(tmp_path)
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, *words)
    assert done.status == 2 and "its ie would be lost; add --metrics ie" in done.err
    assert files(tmp_path) == before


def test_a_frame_that_is_exact_leaves_a_mean_and_valid_json(vimeo, tmp_path, typed):
    for name in ("im1.png", "im2.png", "im3.png"):
        io.write_image(vimeo / "sequences/00001/0001" / name, frame(0))
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path, "--model_name", "average", "--limit", 1)
    assert done.status == 0 and re.search(r"^average +test +1 +100\.00 ", done.out, re.M)
    text = (tmp_path / "Vimeo90K-average-first1.json").read_text()
    assert "Infinity" not in text and result(tmp_path, "Vimeo90K-average-first1")["average"]["test"]["psnr"] == 100


def test_what_is_wrong_on_one_rank_ends_all_in_one_line(vimeo, tmp_path):
    (vimeo / "sequences/00001/0002/im2.png").write_bytes(b"no picture")
    words = ["benchmarks.Vimeo90K", "--data", vimeo, "--device", "cpu", "--workers", 0, "--out", tmp_path]
    status, errors = zip(*run_ranks(tmp_path, *[[*words, "--model_name", "average"]] * 2))
    assert status == (2, 2), errors
    assert all(error.count("\n") == 1 for error in errors), errors
    assert any("0002/im2.png: not a PNG file" in error for error in errors)


def test_what_is_listed_twice_is_told_and_frames_too_small_for_a_metric_are_named(vimeo, tmp_path, typed):
    (vimeo / "tri_testlist.txt").write_text("00001/0001\n00001/0002\n00001/0001\n")
    for k in (1, 2, 3):
        io.write_image(vimeo / f"sequences/00001/0001/im{k}.png", frame(k, 8, 8))
    with pytest.warns(UserWarning, match="listed, and scored, more than once: 00001/0001, 00001/0001"):
        words = ["--model_name", "average", "--metrics", "ssim_2d"]
        done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "out", *words)
    assert done.status == 2 and "00001/0001/im1.png: an image of 8x8 holds no window of 11x11" in done.err


def test_frames_that_are_missing_in_a_video_are_told_of(tmp_path, typed):
    for number in range(1, 11):
        if number != 5:
            io.write_image(tmp_path / "in" / "a" / f"{number:05}.png", frame(number, 520, 520))
    words = [tmp_path / "in", tmp_path, "--model_name", "repeat"]
    with pytest.warns(UserWarning, match="a: frames are missing after 00004.png"):
        assert score(typed, Adobe240.BENCHMARK, *words, parser=Adobe240.command_line()).status == 0


def test_a_run_that_is_to_keep_its_frames_does_not_go_on_from_one_that_did_not(vimeo, tmp_path, typed):
    path = vimeo / "sequences/00001/0004/im2.png"
    data = path.read_bytes()
    path.write_bytes(data[:500])
    assert score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "out", "--model_name", "average").status == 2
    path.write_bytes(data)
    words = ["--model_name", "average", "--save_frames"]
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path / "out", *words)
    assert done.status == 0 and "scored before" not in done.out
    assert len(list((tmp_path / "out").glob("Vimeo90K-average/test/**/*.png"))) == 7


def test_other_precisions_have_files_of_their_own(vimeo, weights, tmp_path, typed):
    ways = [[], ["--precision", "bf16"], ["--fast", "--precision", "bf16"], ["--fast", "--precision", "fp32"]]
    for words in ways:
        done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path, "--checkpoint", weights, "--limit", 1, *words)
        assert done.status == 0, done.err
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    kept = {(result["mode"], result["precision"]) for result in found}
    assert kept == {("eager", "fp32"), ("eager", "bf16"), ("fast", "bf16"), ("fast", "fp32")}


def test_a_baseline_has_the_same_file_whatever_is_asked_of_networks(vimeo, weights, tmp_path, typed):
    words = ["--model_name", "average", "IFRNet_S", "--checkpoint", weights, "--limit", 1, "--fast", "--precision"]
    for precision in ("bf16", "fp32"):
        done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path, *words, precision)
        shown = {"bf16": "fp32 and bf16", "fp32": "fp32"}[precision]
        assert done.status == 0 and done.out.startswith(f"Vimeo90K, protocol paper, {shown}, ")
    got = result(tmp_path, "Vimeo90K-average-first1")
    assert (got["precision"], got["mode"]) == ("fp32", "eager") and len(list(tmp_path.glob("*.json"))) == 3


def test_skipped_cases_are_counted_in_the_table_and_named_in_the_file(vimeo, tmp_path, typed):
    (vimeo / "sequences/00001/0002/im3.png").unlink()
    io.write_image(vimeo / "sequences/00001/0005/im1.png", frame(0, 48, 65))
    done = score(typed, Vimeo90K.BENCHMARK, vimeo, tmp_path, "--model_name", "average", "--skip_broken")
    assert re.search(r"^average +test +5 \(2 left out\) ", done.out, re.M), done.out
    got = result(tmp_path, "Vimeo90K-average-skip_broken")
    assert got["average"]["test"]["cases"] == 5 and got["average"]["test"]["left_out"] == 2
    broken = {s["name"]: s["broken"] for s in got["samples"]["test"] if s["broken"]}
    assert "im3.png: no such file" in broken["00001/0002"] and "64x48, but" in broken["00001/0005"]
    expected = [psnr_by_hand((a + b) / 2, truth) for a, truth, b in (triplet(vimeo, k) for k in (1, 3, 4, 6, 7))]
    assert got["average"]["test"]["psnr"] == pytest.approx(np.mean(expected), abs=1e-4)


def test_a_folder_that_is_missing_and_frames_of_one_pixel_are_broken_cases(vimeo, tmp_path, typed):
    words = [Vimeo90K.BENCHMARK, vimeo, tmp_path, "--model_name", "average"]
    shutil.rmtree(vimeo / "sequences/00001/0001")
    for i in (1, 2, 3):
        io.write_image(vimeo / f"sequences/00001/0007/im{i}.png", frame(0, 1, 1))
    done = score(typed, *words)
    assert done.status == 2 and "0001/im1.png: no such file, but the set has it" in done.err
    assert "--skip_broken leaves 00001/0001 out" in done.err
    assert score(typed, *words, "--skip_broken").status == 0
    broken = {s["name"]: s["broken"] for s in result(tmp_path, "Vimeo90K-average-skip_broken")["samples"]["test"]}
    assert "0001/im1.png: no such file" in broken["00001/0001"]
    assert "0007/im1.png: a frame of 1x1; at least 2x2 is needed" in broken["00001/0007"]
    assert sum(map(bool, broken.values())) == 2


def test_what_a_user_can_get_wrong_is_one_line(vimeo, weights, tmp_path, typed):
    def complaint(*options, root=vimeo):
        done = score(typed, Vimeo90K.BENCHMARK, root, tmp_path / "out", *options)
        assert done.status == 2 and done.err.count("\n") == 1 and done.out == ""
        return done.err

    gone = complaint(root=tmp_path / "gone")
    assert "gone: no Vimeo90K here (tri_testlist.txt is missing)" in gone and "http" in gone and "--data" in gone
    assert "a checkpoint fits one network" in complaint("--checkpoint", weights, "--model_name", "IFRNet", "IFRNet_L")
    assert "holds an IFRNet_S, not an IFRNet" in complaint("--checkpoint", weights, "--model_name", "IFRNet")
    assert "scale 0 is out of range" in complaint("--checkpoint", weights, "--scale", 0)
    assert "invalid choice: 'rife'" in complaint("--protocol", "rife")
    assert "--lpips_weights: has no effect without --metrics lpips" in complaint("--lpips_weights", weights)
    assert "--world_size 4, but the number of processes is 1" in complaint("--world_size", 4)
    (vimeo / "tri_testlist.txt").write_text("\n\n")
    assert "tri_testlist.txt: the list is empty" in complaint()
    (vimeo / "tri_testlist.txt").write_bytes(b"00001/0001\xff")
    assert "tri_testlist.txt: not a text file in UTF-8" in complaint()
    assert not list(tmp_path.glob("out/*"))


def test_weights_that_ignore_t_are_refused_where_other_times_are_asked_for(weights, tmp_path, typed):
    model = models.load(weights)
    model.decoder4.convblock[0][0].weight.data[:, -1] = 0
    torch.save(model.state_dict(), tmp_path / "half.pth")
    for k in range(9):
        io.write_image(tmp_path / f"Adobe240/video/{k}.png", frame(0, 512, 512))
    words = ["--model_name", "average", "IFRNet_S", "--checkpoint", tmp_path / "half.pth"]
    done = score(
        typed, Adobe240.BENCHMARK, tmp_path / "Adobe240", tmp_path / "out", *words, parser=Adobe240.command_line()
    )
    assert done.status == 2 and re.search("half.pth: t = 0.125: .* trained at t = 0.5 alone", done.err)
    assert not (tmp_path / "out").exists(), "the other model was scored before"
