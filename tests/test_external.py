"""Methods from elsewhere: what their functions return, and that neither side's modules are taken for the other's."""

import hashlib
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from conftest import formula_image
from scoring import frame, score

import models
from benchmarks import Vimeo90K
from models import baselines
from models.baselines import Average, External
from utils import io
from utils.pipeline import between

ANY_TIME = "def interpolate(img0, img1, t):\n    return (1 - t) * img0 + t * img1\n"
PAIR = formula_image(24, 32, 1), formula_image(24, 32, 2)


@pytest.fixture
def repository(tmp_path):
    """Makes a folder of code whose packages have the names of ours, and no __init__.py. factor: of its frames."""

    def make(name, factor):
        folder = tmp_path / name
        for package in ("models", "utils"):
            (folder / package).mkdir(parents=True)
        (folder / "utils/io.py").write_text(f"FACTOR = {factor}\n")
        (folder / "models/Net.py").write_text(
            "from utils.io import FACTOR\n\ndef net(a, b):\n    return FACTOR * (a + b)\n"
        )
        path = folder / "method.py"
        path.write_text("from models.Net import net\n\ndef interpolate(img0, img1):\n    return net(img0, img1)\n")
        return path

    return make


def written(tmp_path, text):
    path = tmp_path / "method.py"
    path.write_text(text)
    return path


def test_repositories_with_packages_of_the_same_names_each_find_their_own(repository):
    before, paths = dict(sys.modules), list(sys.path)
    half, third = (External(repository(name, factor), "cpu") for name, factor in (("a", 1 / 2), ("b", 1 / 3)))
    torch.testing.assert_close(half(*PAIR), Average("cpu")(*PAIR))
    torch.testing.assert_close(third(*PAIR), Average("cpu")(*PAIR) * 2 / 3)
    assert {name: sys.modules.get(name) for name in before} == before and sys.path == paths
    assert not [name for name in set(sys.modules) - set(before) if name.startswith(("models", "utils"))]


def test_what_a_method_imports_or_loads_only_when_it_is_called_is_its_own_too(tmp_path, repository):
    lazy = "def interpolate(img0, img1):\n    from models.Net import net\n    import beside\n\n"
    calls = []
    for name, factor in (("a", 1 / 2), ("b", 1 / 3)):
        path = repository(name, factor)
        path.write_text(lazy + "    return beside.copied(net)(img0, img1)\n")
        path.with_name("beside.py").write_text(
            "import pickle\n\ndef copied(x):\n    return pickle.loads(pickle.dumps(x))\n"
        )
        calls.append(External(path, "cpu"))
    before, paths = dict(sys.modules), list(sys.path)
    for _ in range(2):
        torch.testing.assert_close(calls[0](*PAIR), Average("cpu")(*PAIR))
        torch.testing.assert_close(calls[1](*PAIR), Average("cpu")(*PAIR) * 2 / 3)
    assert {name: sys.modules.get(name) for name in before} == before and sys.path == paths
    assert not [name for name in set(sys.modules) - set(before) if name.startswith(("models", "utils", "beside"))]


def test_a_name_of_an_installed_package_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "numpy").mkdir()
    (tmp_path / "cv2.py").write_text("")
    monkeypatch.delitem(sys.modules, "imageio", raising=False)  # so that it has to be looked for
    text = "import cv2\nimport numpy.linalg\nimport imageio\n\ncv2.resize\n\n"
    External(written(tmp_path, text + ANY_TIME))


def test_a_method_above_our_checkout_finds_its_own_packages(tmp_path, monkeypatch, repository):
    path = repository("a", 1 / 2)
    ours = path.parent / "checkout/models/__init__.py"
    monkeypatch.setattr(models, "__file__", str(ours))
    torch.testing.assert_close(External(path, "cpu")(*PAIR), Average("cpu")(*PAIR))


def test_what_a_file_does_to_our_process_ends_with_it(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(sys, "argv", words := ["Vimeo90K.py", "--model_name", "method.py"])
    text = "import argparse, os\n\nargs = argparse.ArgumentParser().parse_args()\nos.chdir('elsewhere')\n"
    text += "print('loaded')\n\ndef interpolate(img0, img1):\n    print('called')\n    return img0\n"
    External(written(tmp_path, text))(*PAIR)
    assert os.getcwd() == str(tmp_path) and sys.argv == words
    assert capfd.readouterr() == ("", "loaded\ncalled\n")


def test_pytorchs_defaults_of_a_method_are_its_own(tmp_path):
    text = "import torch\n\ntorch.set_default_dtype(torch.float64)\ntorch.set_default_device('meta')\n\n"
    text += "def interpolate(img0, img1):\n    new = torch.ones(1)\n"
    text += "    assert new.is_meta and new.dtype == torch.float64\n    return img0\n"
    try:
        torch.testing.assert_close(External(written(tmp_path, text), "cpu")(*PAIR), PAIR[0][None])
        assert torch.get_default_dtype() == torch.float32 and torch.empty(0).device.type == "cpu"
        torch.testing.assert_close(External(written(tmp_path, ANY_TIME), "cpu")(*PAIR), Average("cpu")(*PAIR))
        assert torch.ones(1).dtype == torch.float32 and not torch.ones(1).is_meta
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_methods_that_are_called_in_several_threads_leave_our_process_as_it_was(repository):
    calls = [External(repository(name, factor), "cpu") for name, factor in (("a", 1 / 2), ("b", 1 / 3))]
    expected = [call(*PAIR) for call in calls]
    before = sys.stdout, sys.path[:], sys.modules["models"], sys.modules["utils"]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(lambda number: calls[number % 2](*PAIR), range(200)))
    assert all(torch.equal(frames, expected[number % 2]) for number, frames in enumerate(got))
    assert (sys.stdout, sys.path, sys.modules["models"], sys.modules["utils"]) == before


def test_a_folder_that_has_the_name_of_a_standard_module_hides_nothing(tmp_path):
    (tmp_path / "logging").mkdir()
    sys.modules.pop("filecmp", None)  # so that it has to be looked for
    External(written(tmp_path, f"import filecmp\nfrom logging import getLogger\n\n{ANY_TIME}"))


def test_a_method_is_asked_for_the_frame_at_t(tmp_path):
    call, times = External(written(tmp_path, ANY_TIME), "cpu"), [0.25, 0.9]
    assert call.any_time
    torch.testing.assert_close(call(*PAIR, times), Average("cpu")(*PAIR, times))


def test_a_method_may_pad_by_our_networks_code_and_import_a_network_beside_ours(tmp_path):
    """As CONTRIBUTING.md tells of networks of another kind."""
    text = "from models import Padding\nfrom models.widen import widen\n\ndef interpolate(img0, img1):\n"
    call = External(written(tmp_path, text + "    return Padding().pad(img0, (0, 0, 0, 0))\n"), "cpu")
    torch.testing.assert_close(call(*PAIR, [0.5])[0], PAIR[0])


def test_a_method_that_takes_no_t_makes_videos_by_halving(repository):
    call = External(repository("a", 1 / 2), "cpu")
    with pytest.raises(ValueError, match=r"method.py: t = 0.25, but interpolate\(img0, img1\) knows t = 0.5 only"):
        call(*PAIR, [0.5, 0.25])
    times = [Fraction(k, 8) for k in range(1, 8)]
    expected = Average("cpu").each(*PAIR, [float(t) for t in times])
    for got, wanted in zip(between(call, *PAIR, times), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_frames_are_clamped_and_have_no_graph(tmp_path):
    text = "import torch\n\nscale = torch.nn.Parameter(torch.tensor(3.0))\n\n"
    text += "def interpolate(img0, img1, t):\n    return (scale * (img0 - 0.5)).double()\n"
    (got,) = External(written(tmp_path, text), "cpu")(*PAIR)
    assert not got.requires_grad and got.dtype == torch.float32
    torch.testing.assert_close(got, (3 * (PAIR[0] - 0.5)).clamp(0, 1))


def test_what_is_no_method_is_told_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.py: no such file; a method is a Python file with interpolate\("):
        External(tmp_path / "none.py")
    with pytest.raises(ValueError, match=r"method.py: has no function interpolate\(img0, img1, t\)"):
        External(written(tmp_path, "interpolate = 1\n"))
    small = "def interpolate(img0, img1, t):\n    return img0[..., 1:]\n"
    with pytest.raises(ValueError, match=r"method.py: interpolate returned \(1, 3, 24, 31\) for frames of \(1, 3"):
        External(written(tmp_path, small), "cpu")(*PAIR)
    for text, told in (
        ("def interpolate(img0, img1, t):\n    return [img0]\n", "interpolate returned a list, not a tensor"),
        ("def interpolate(img0, img1, t):\n    return (255 * img0).byte()\n", "interpolate returned torch.uint8; fl"),
        ("def interpolate(img0, img1, t):\n    return img0 > 0.5\n", "interpolate returned torch.bool; floats in"),
        ("def interpolate(img0, img1, t):\n    return 255 * img0\n", r"interpolate returned values that are 1\d\d\."),
        ("def interpolate(img0, img1, t):\n    return img0 - 9e9\n", "interpolate returned values that are -9e"),
        ("def interpolate(img0):\n    return img0\n", "interpolate takes other arguments than"),
        ("def interpolate(img0, img1, t, scale):\n    return img0\n", "interpolate takes other arguments than"),
    ):
        with pytest.raises(ValueError, match=f"method.py: {told}"):
            External(written(tmp_path, text), "cpu")(*PAIR)
    with pytest.raises(ValueError, match="method.py has no weights and cannot use IFRNet_S"):
        models.baselines.interpolator(str(tmp_path / "method.py"), "IFRNet_S")


NET = """import torch

class Net(torch.nn.Module):
    def forward(self, a, b, t: float):
        return a.lerp(b, t)

"""


@pytest.mark.parametrize(
    "text",
    [
        "def interpolate(*given):\n    a, b, t = given\n    return a.lerp(b, t)\n",
        "def interpolate(a, b, t=0.5, *, scale=1):\n    return a.lerp(b, t)\n",
        f"{NET}interpolate = Net()\n",
        pytest.param(
            f"{NET}interpolate = torch.jit.script(Net()).forward\n",
            marks=pytest.mark.filterwarnings("ignore:.*torch.jit.script"),
        ),
    ],
)
def test_whatever_can_take_t_is_given_it(tmp_path, text):
    torch.testing.assert_close(External(written(tmp_path, text), "cpu")(*PAIR, [0.25]), Average("cpu")(*PAIR, [0.25]))


def test_a_method_that_changes_its_frames_does_not_change_ours(tmp_path):
    text = "def interpolate(img0, img1, t):\n    return img0.mul_(1 - t).add_(img1.mul_(t))\n"
    times = [0.25, 0.5]
    got = External(written(tmp_path, text), "cpu")(*PAIR, times)
    torch.testing.assert_close(got, Average("cpu")(*PAIR, times))


@pytest.mark.parametrize("raised", ["ValueError('odd')", "FileNotFoundError(2, 'No such file', 'a.pth')"])
@pytest.mark.parametrize("when", ["at once", "when called"])
def test_an_error_in_a_methods_code_keeps_its_traceback(tmp_path, typed, raised, when):
    from demo_2x import main, parser

    text = f"def interpolate(img0, img1):\n    raise {raised}\n" + "\ninterpolate(0, 0)\n" * (when == "at once")
    with pytest.raises(RuntimeError, match="method.py: .*(odd|No such file)") as error:
        typed(main, parser(""), "--model_name", written(tmp_path, text), "--out", tmp_path)
    assert type(error.value.__cause__).__name__ in raised


def test_a_method_that_ends_the_process_does_not_end_ours_in_silence(tmp_path):
    with pytest.raises(RuntimeError, match=r"method.py: SystemExit\(0\)"):
        External(written(tmp_path, f"import sys\n\n{ANY_TIME}\nsys.exit(0)\n"))
    with pytest.raises(RuntimeError, match=r"method.py: SystemExit\('no licence'\)"):
        External(written(tmp_path, "import sys\n\ndef interpolate(*_):\n    sys.exit('no licence')\n"), "cpu")(*PAIR)


def test_a_method_is_scored_beside_others_and_its_code_is_recorded(tmp_path, repository, typed):
    root, out = tmp_path / "set", tmp_path / "out"
    for number in (1, 2, 3):
        io.write_image(root / f"sequences/00001/0001/im{number}.png", frame(number))
    (root / "tri_testlist.txt").write_text("00001/0001\n")
    path = repository("a", 1 / 2)
    done = score(typed, Vimeo90K.BENCHMARK, root, out, "--model_name", "average", path)
    assert done.status == 0, done.err
    average, method = (json.loads((out / f"Vimeo90K-{name}.json").read_text()) for name in ("average", "method"))
    assert method["samples"] == average["samples"] and method["model"] == "method"
    assert method["code"] == str(path) and method["code_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()

    other, link = repository("b", 1 / 3), tmp_path / "other.py"
    done = score(typed, Vimeo90K.BENCHMARK, root, out / "new", "--model_name", path, other)
    assert done.status == 2 and "Vimeo90K-method" in done.err and "would hold two results; rename" in done.err
    link.symlink_to(other)  # is a name, too
    assert score(typed, Vimeo90K.BENCHMARK, root, out / "new", "--model_name", path, link).status == 0
    assert json.loads((out / "new/Vimeo90K-other.json").read_text())["code"] == str(other)
    path.write_text("def interpolate(img0, img1, t):\n    return img0 * float('nan')\n")
    done = score(typed, Vimeo90K.BENCHMARK, root, out, "--model_name", path)
    assert done.status == 2 and "im1.png: psnr is not finite; check what method returns" in done.err
    path.write_text(ANY_TIME)
    assert score(typed, Vimeo90K.BENCHMARK, root, out, "--model_name", path).status == 0
    assert len(list(out.glob("Vimeo90K-method*.json"))) == 2


def test_a_path_names_a_method_and_what_is_no_name_is_unknown(repository):
    call = baselines.interpolator(repository("one", 0.5), device="cpu")
    torch.testing.assert_close(call(*PAIR)[0], sum(PAIR) / 2)
    for other in (5, Path("IFRNet_S")):
        with pytest.raises(ValueError, match=re.escape(f"unknown model {other!r}; choose one of IFRNet_S")):
            baselines.interpolator(other, device="cpu")


def test_an_unknown_model_is_told_with_those_that_there_are(typed):
    from demo_2x import main, parser

    done = typed(main, parser(""), "--model_name", "rife")
    assert done.status == 2 and done.err.count("\n") == 1
    known = ", ".join([*models.VARIANTS, "repeat", "average", "dis"])
    assert f"unknown model 'rife'; choose one of {known}, or a .py" in done.err
