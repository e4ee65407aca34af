"""Every benchmark on a small replica of its layout: which pictures make a case, and what is done to them, by hand."""

import importlib
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from scoring import frame, psnr_by_hand, result, score

import models
from benchmarks import SNU_FILM, UCF101, X_TEST, Adobe240, GoPro, Middlebury_Other, Vimeo90K, Xiph, published, store
from benchmarks.cases import Split
from benchmarks.common import find_data
from utils import cli, io

PUBLISHED = [Vimeo90K, UCF101, SNU_FILM, Middlebury_Other, GoPro, Adobe240, Xiph, X_TEST]
FILES = [path for path in sorted((ROOT / "benchmarks").glob("*.py")) if "\nBENCHMARK = " in path.read_text()]
SETS = [importlib.import_module(f"benchmarks.{path.stem}") for path in FILES if path.stem != "Clips"]  # that has no set
EVERY = pytest.mark.parametrize("module", SETS, ids=lambda module: module.__name__)


def place(pictures, names):
    """Write the pictures to the named files, in turn; links where a picture is repeated."""
    first = {}
    for k, name in enumerate(names):
        picture = k % len(pictures)
        name.parent.mkdir(parents=True, exist_ok=True)
        if picture in first:
            name.symlink_to(first[picture])
        else:
            io.write_image(name, pictures[picture])
            first[picture] = name


def average(img0, img1, t=0.5):
    return ((1 - t) * img0.astype(np.float64) + t * img1) / 255


def network(weights, img0, img1, scale=1.0):
    """The network itself on frames that need no padding, (H, W, 3) uint8 -> (H, W, 3) float."""
    model = models.load(weights)
    with torch.no_grad():
        out = model(io.to_float(img0)[None], io.to_float(img1)[None], 0.5, scale=scale)
    return out.imgt[0].movedim(0, -1).numpy()


def test_ucf101_takes_every_folder_in_the_order_of_its_number(tmp_path, typed):
    root = tmp_path / "UCF101"
    pictures = [frame(k, 32, 32) for k in range(4)]
    (root / "ucf101_interp_ours" / ".thumbnails").mkdir(parents=True)
    for number in ("2", "10", "1"):
        folder = root / "ucf101_interp_ours" / number
        place(pictures[int(number) % 2 :], [folder / f"frame_{n}.png" for n in ("00", "01_gt", "02")])
    done = score(typed, UCF101.BENCHMARK, root, tmp_path / "out", "--model_name", "average")
    got = result(tmp_path / "out", "UCF101-average")["samples"]["test"]
    assert [sample["name"] for sample in got] == ["1", "2", "10"]
    expected = [psnr_by_hand(average(pictures[k], pictures[k + 2]), pictures[k + 1] / 255) for k in (1, 0, 0)]
    np.testing.assert_allclose([sample["psnr"][0] for sample in got], expected, atol=1e-4)
    case = UCF101.BENCHMARK.splits(root, None)[0].cases[0]
    assert [path.stem for path in case.pictures] == ["frame_00", "frame_02", "frame_01_gt"] and case.times == (0.5,)
    assert "33.17 / 0.9520" in done.out and "published numbers of test are of 379 cases, not of 3" in done.out


def test_vimeo90k_takes_the_triplets_of_the_test_list_whose_middle_frame_is_the_target(tmp_path):
    (tmp_path / "tri_testlist.txt").write_text("00001/0266\n\n00096/0001\n")
    (tmp_path / "tri_trainlist.txt").write_text("00001/0001\n")
    (split,) = Vimeo90K.BENCHMARK.splits(tmp_path, None)
    folders = [tmp_path / "sequences" / name for name in ("00001/0266", "00096/0001")]
    assert [case.pictures for case in split.cases] == [
        (folder / "im1.png", folder / "im3.png", folder / "im2.png") for folder in folders
    ]
    assert split.full == 3782


@pytest.fixture
def snu(tmp_path):
    """Two triplets of 70x50 per split; in the lists of two splits, paths begin with the authors' own folder."""
    root = tmp_path / "SNU-FILM"
    names = [f"test/GOPRO_test/scene/{k:06d}.png" for k in range(6)]
    place([frame(k, 50, 70) for k in range(6)], [root / name for name in names])
    for prefix, split in zip(("", "data/SNU-FILM/") * 2, SNU_FILM.SPLITS):
        lines = [" ".join(prefix + name for name in names[k : k + 3]) for k in (0, 3)]
        (root / f"test-{split}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("protocol", ["paper", "ema"])
def test_snu_film_is_padded_centrally_by_replication_and_scaled(snu, weights, tmp_path, typed, protocol):
    img0, target, img1 = (frame(k, 50, 70) for k in range(3))
    # To multiples of 20 at scale 0.8: 60x80; to multiples of 32 at scale 0.5: 64x96.
    scale, (height, width) = {"paper": (0.8, (60, 80)), "ema": (0.5, (64, 96))}[protocol]
    top, left = (height - 50) // 2, (width - 70) // 2
    amounts = [(top, height - 50 - top), (left, width - 70 - left), (0, 0)]
    padded = [np.pad(x, amounts, mode="edge") for x in (img0, img1)]
    inside = slice(top, top + 50), slice(left, left + 70)
    prediction = network(weights, *padded, scale)[inside]
    if protocol == "ema":
        turned = np.rot90(network(weights, *(np.rot90(x, 2) for x in padded), scale), 2)[inside]
        prediction = np.round((prediction + turned) / 2 * 255) / 255
    done = score(typed, SNU_FILM.BENCHMARK, snu, tmp_path, "--checkpoint", weights, "--protocol", protocol)
    assert done.status == 0, done.err
    (path,) = tmp_path.glob("*.json")
    got = result(tmp_path, path.stem)
    assert list(got["average"]) == ["easy", "medium", "hard", "extreme"] and got["scale"] == scale
    for split in got["average"]:
        assert got["average"][split]["cases"] == 2 and got["average"][split]["full"] == 310
        assert got["samples"][split][0]["psnr"][0] == pytest.approx(psnr_by_hand(prediction, target / 255), abs=1e-3)


def test_a_line_of_an_snu_list_without_three_paths_is_named(snu, tmp_path, typed):
    with (snu / "test-hard.txt").open("a") as file:
        file.write("test/a.png test/b.png\n")
    done = score(typed, SNU_FILM.BENCHMARK, snu, tmp_path, "--model_name", "average")
    assert done.status == 2 and "test-hard.txt, line 3: 2 paths, not three" in done.err
    (snu / "test-hard.txt").write_text("\n \n")
    done = score(typed, SNU_FILM.BENCHMARK, snu, tmp_path, "--model_name", "average")
    assert done.status == 2 and "nothing to score here: the split 'hard' has no case" in done.err
    (snu / "test-extreme.txt").unlink()
    (snu / "test-hard.txt").write_text("")
    done = score(typed, SNU_FILM.BENCHMARK, snu, tmp_path, "--model_name", "average")
    assert done.status == 2 and "test-extreme.txt: no such list" in done.err


def middlebury(root):
    """Every triplet of the set, smaller than 640x480; returns its img0, img1 and target."""
    pictures = [frame(k, 120, 150) for k in range(3)]
    for name in Middlebury_Other.NAMES:
        place(pictures[:2], [root / "other-data" / name / f for f in ("frame10.png", "frame11.png")])
        place(pictures[2:], [root / "other-gt-interp" / name / "frame10i11.png"])
    return pictures


def test_middlebury_is_padded_with_zeros_right_and_below(weights, tmp_path, typed):
    root = tmp_path / "Middlebury"
    img0, img1, target = middlebury(root)
    assert Middlebury_Other.BENCHMARK.padding.amounts(120, 150, 1) == (0, 490, 0, 360)
    assert Middlebury_Other.BENCHMARK.padding.amounts(480, 640, 1) == (0, 0, 0, 0)
    assert len(Middlebury_Other.NAMES) == 12 == Middlebury_Other.BENCHMARK.splits(root, None)[0].full
    canvas = np.zeros((2, 480, 640, 3), np.uint8)
    canvas[:, :120, :150] = img0, img1
    prediction = network(weights, *canvas)[:120, :150]
    done = score(typed, Middlebury_Other.BENCHMARK, root, tmp_path, "--checkpoint", weights, "--limit", 1)
    (path,) = tmp_path.glob("*.json")
    got = result(tmp_path, path.stem)["average"]["other"]
    assert got["psnr"] == pytest.approx(psnr_by_hand(prediction, target / 255), abs=1e-3)
    assert got["ie"] == pytest.approx(np.abs(np.round(prediction * 255) - target).mean(), abs=1e-3)
    assert "37.24 / 0.9851 / 1.995" in done.out


def test_middleburys_submission_is_the_eight_files_that_are_asked_for(tmp_path, typed):
    root = tmp_path / "Middlebury"
    img0, img1 = frame(0), frame(1)
    for name in Middlebury_Other.SUBMISSION:
        place([img0, img1], [root / "eval-data" / name / f for f in ("frame10.png", "frame11.png")])
    options = Middlebury_Other.command_line()
    words = ["--submission", "--data", root, "--out", tmp_path / "out", "--device", "cpu", "--model_name", "average"]
    done = typed(Middlebury_Other.main, options, *words)
    folder = tmp_path / "out" / "Middlebury_Evaluation-average"
    assert done.out == f"wrote 8 frames to {folder}\n"
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert written == sorted(f"{name}/frame10i11.png" for name in Middlebury_Other.SUBMISSION)
    assert np.abs(io.read_image(folder / "Teddy" / "frame10i11.png") - 255 * average(img0, img1)).max() < 0.51
    for name in ("workers", "batch_size"):
        refused = typed(Middlebury_Other.main, options, *words, f"--{name}", 2)
        assert refused.status == 2 and f"--{name} 2: has no effect with --submission" in refused.err
    (root / "eval-data" / "Urban" / "frame11.png").unlink()
    done = typed(Middlebury_Other.main, options, *words)
    assert done.status == 2 and "Urban/frame11.png: no such file" in done.err and "--skip_broken" not in done.err
    shutil.rmtree(root / "eval-data")
    done = typed(Middlebury_Other.main, options, *words)
    assert done.status == 2 and "eval-data is missing" in done.err


@pytest.mark.parametrize("flat", [True, False])
def test_gopro_windows_share_their_outer_frames_and_are_cropped(tmp_path, typed, flat):
    root = tmp_path / "GOPRO" if flat else tmp_path / "GOPRO" / "test"
    pictures = [frame(k, 516, 530) for k in range(3)]
    for video, count in zip(GoPro.TEST_VIDEOS, (18, 9, *[10] * 9)):
        place(pictures, [root / video / f"{k:06d}.png" for k in range(1, count + 1)])
    (split,) = GoPro.BENCHMARK.splits(tmp_path / "GOPRO", None)
    assert len(split.cases) == 12  # two of the first video, whose last frame is left over
    second = split.cases[1]
    assert (second.img0.name, second.img1.name) == ("000009.png", "000017.png")
    assert [path.name for path in second.targets] == [f"{k:06d}.png" for k in range(10, 17)]
    assert second.times == tuple(k / 8 for k in range(1, 8))
    done = score(typed, GoPro.BENCHMARK, tmp_path / "GOPRO", tmp_path, "--model_name", "average", "--limit", 1)
    assert done.status == 0, done.err
    crops = [x[2:514, 9:521] for x in pictures]
    expected = [psnr_by_hand(average(crops[0], crops[2], k / 8), crops[k % 3] / 255) for k in range(1, 8)]
    got = result(tmp_path, "GoPro-average-first1")
    assert got["limit"] == 1
    np.testing.assert_allclose(got["samples"]["8x"][0]["psnr"], expected, atol=1e-4)
    assert got["average"]["8x"]["psnr"] == pytest.approx(np.mean(expected), abs=1e-4)


def test_a_missing_video_and_one_that_is_too_short_are_named(tmp_path, typed):
    root = tmp_path / "GOPRO"
    place([frame(0)], [root / GoPro.TEST_VIDEOS[0] / f"{k}.png" for k in range(8)])
    done = score(typed, GoPro.BENCHMARK, root, tmp_path, "--model_name", "average")
    assert done.status == 2 and f"{GoPro.TEST_VIDEOS[0]}: 8 frames, but a window takes 9" in done.err
    place([frame(0)], [root / GoPro.TEST_VIDEOS[0] / "8.png"])
    done = score(typed, GoPro.BENCHMARK, root, tmp_path, "--model_name", "average")
    assert done.status == 2 and f"{GoPro.TEST_VIDEOS[1]}: no such folder of frames" in done.err


def adobe(typed, tmp_path, *words):
    where = tmp_path / "Adobe240", tmp_path / "out"
    return score(typed, Adobe240.BENCHMARK, *where, *words, parser=Adobe240.command_line())


def test_a_frame_without_a_centre_to_cut_is_named(tmp_path, typed):
    place([frame(0)], [tmp_path / "Adobe240/video" / f"{k}.png" for k in range(9)])
    done = adobe(typed, tmp_path, "--model_name", "average")
    assert done.status == 2 and "video/0.png: a frame of 64x48 is smaller than the crop of 512x512" in done.err


def test_adobe240_without_videos_is_named(tmp_path, typed):
    (tmp_path / "Adobe240").mkdir()
    done = adobe(typed, tmp_path, "--model_name", "average")
    assert done.status == 2 and "Adobe240: no folders of frames; extract one per video" in done.err


def test_adobe240_takes_the_videos_that_are_named_and_records_them(tmp_path, typed):
    for name in "abc":
        place([frame(0, 512, 512), frame(1, 512, 512)], [tmp_path / "Adobe240" / name / f"{k}.png" for k in range(9)])
    assert adobe(typed, tmp_path, "--model_name", "repeat", "--videos", "c").status == 0
    got = result(tmp_path / "out", "Adobe240-repeat")
    assert got["options"] == {"videos": ["c"]} and [s["name"] for s in got["samples"]["8x"]] == ["c/0"]
    done = adobe(typed, tmp_path, "--model_name", "repeat", "--videos", "d")
    assert done.status == 2 and "d: no such folder" in done.err


@pytest.mark.parametrize("form", ["{}-{:03d}.png", "{}/{:03d}.png"])
def test_xiph_is_halved_for_2k_and_cut_for_4k(tmp_path, typed, form):
    root = tmp_path / "Xiph"
    pictures = [frame(k, 64, 96) for k in range(3)]
    for clip in Xiph.CLIPS:
        place(pictures, [root / form.format(clip, k) for k in range(1, 101)])
    small, large = Xiph.BENCHMARK.splits(root, None)
    assert len(small.cases) == len(large.cases) == small.full == large.full == 392
    assert [path.name[-7:] for path in small.cases[48].pictures] == ["097.png", "099.png", "098.png"]
    score(typed, Xiph.BENCHMARK, root, tmp_path, "--model_name", "average", "--limit", 1)
    got = result(tmp_path, "Xiph-average-first1")["average"]
    halves = [np.round(x.reshape(32, 2, 48, 2, 3).mean((1, 3))) for x in pictures]
    centres = [x[16:48, 24:72] for x in pictures]
    for name, (img0, target, img1) in (("2K", halves), ("4K", centres)):
        # Half grey levels may be rounded either way.
        assert got[name]["psnr"] == pytest.approx(psnr_by_hand(average(img0, img1), target / 255), abs=0.01)


def test_x_test_asks_for_every_fourth_of_33_frames(tmp_path, typed):
    root = tmp_path / "X_TEST"
    pictures = [frame(k, 64, 96) for k in range(33)]
    for scene in ("Type1/TEST01_003_f0433", "Type2/TEST06_001_f0273"):
        place(pictures, [root / scene / f"{k:04d}.png" for k in range(33)])
    (root / "Type1.zip").write_bytes(b"as downloaded")
    (root / "Type1" / ".thumbnails").mkdir()
    score(typed, X_TEST.BENCHMARK, root, tmp_path, "--model_name", "average")
    got = result(tmp_path, "X_TEST-average")
    assert [s["name"] for s in got["samples"]["4K"]] == ["Type1/TEST01_003_f0433", "Type2/TEST06_001_f0273"]
    expected = [psnr_by_hand(average(pictures[0], pictures[32], k / 8), pictures[4 * k] / 255) for k in range(1, 8)]
    np.testing.assert_allclose(got["samples"]["4K"][1]["psnr"], expected, atol=1e-4)
    halves = [np.round(x.reshape(32, 2, 48, 2, 3).mean((1, 3))) for x in pictures]
    expected = [psnr_by_hand(average(halves[0], halves[32], k / 8), halves[4 * k] / 255) for k in range(1, 8)]
    np.testing.assert_allclose(got["samples"]["2K"][1]["psnr"], expected, atol=0.01)
    assert got["average"]["2K"]["full"] == got["average"]["4K"]["full"] == 15
    (root / "Type2/TEST06_001_f0273/0032.png").unlink()
    done = score(typed, X_TEST.BENCHMARK, root, tmp_path, "--model_name", "average")
    assert done.status == 2 and "TEST06_001_f0273: 32 frames, not 33" in done.err


@pytest.mark.parametrize("module", PUBLISHED, ids=lambda module: module.__name__)
def test_only_snu_film_is_scaled_and_only_middlebury_is_padded_otherwise_and_has_the_error(module):
    protocol, middlebury = module.BENCHMARK, module is Middlebury_Other
    assert protocol.scale == protocol.scale_of("uint8") == (0.8 if module is SNU_FILM else 1)
    assert (protocol.padding == models.Padding()) == (not middlebury)
    assert protocol.metrics == ("psnr", "ssim", *["ie"] * middlebury)


@EVERY
def test_data_are_looked_for_where_the_head_of_the_file_shows_them(module, tmp_path, monkeypatch):
    shown = re.search(r"^    data/(\S+)", module.__doc__, re.M)[1]
    (tmp_path / shown).parent.mkdir(parents=True)
    (tmp_path / shown).touch()
    monkeypatch.setattr(cli, "DATA", tmp_path)
    assert find_data(module.BENCHMARK, None) == tmp_path / shown.partition("/")[0]
    assert module.BENCHMARK.page in module.__doc__


@EVERY
def test_a_missing_data_set_is_one_line_that_says_where_it_is_described(module, tmp_path, typed):
    done = score(typed, module.BENCHMARK, tmp_path / "gone", tmp_path, "--model_name", "average")
    assert done.status == 2 and done.err.startswith(f"script.py: {tmp_path / 'gone'}: no {module.BENCHMARK.name} here")
    assert "it is described at http" in done.err and "--data names another folder" in done.err


def test_published_rows_are_of_splits_that_exist():
    names = [{module.BENCHMARK.name for module in modules} for modules in (PUBLISHED, SETS)]
    assert names[0] <= set(published.SCORES) <= names[1]
    assert published.SCORES["SNU_FILM"]["extreme"]["IFRNet_L"] == {"psnr": 25.27, "ssim": 0.8609}
    assert published.SCORES["SNU_FILM"]["hard"]["UPR-Net-LARGE"] == {"psnr": 30.86}
    assert published.SCORES["Middlebury_Other"]["other"]["dis"] == {"psnr": 34.99, "ssim": 0.9745, "ie": 2.376}
    assert "SoftSplat" not in published.SCORES["SNU_FILM"]["easy"]


def test_where_the_paper_has_no_number_that_of_a_rerun_stands_beside_ours():
    beside = store.summary("Xiph", "IFRNet", [Split("2K", []), Split("4K", [])], [])["published"]
    assert beside == {"2K": {"psnr": 36.00}, "4K": {"psnr": 33.99}}
    beside = store.summary("GoPro", "IFRNet", [Split("8x", [])], [])["published"]
    assert beside == {"8x": {"psnr": 29.84, "ssim": 0.920}}
