"""The rules that keep the parts apart: who may import whom, and that scripts start from anywhere."""

import ast
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

import models
from utils import cli

PACKAGES = ("models", "losses", "datasets", "utils", "benchmarks")
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
ALLOWED = {  # package -> the modules of the project that it may import from
    "models": (),
    "losses": ("models.native", "models.triton_kernels"),
    "datasets": ("datasets", "utils.io", "utils.flow_files", "utils.containers", "utils.shots", "utils.cli"),
    "utils": ("utils", "models"),
}


def imports(path):
    """The names of this project's modules that a file imports, relative ones left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in (*PACKAGES, *map(bare, SCRIPTS)))


def bare(script):
    return script.removesuffix(".py")


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package):
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(path):
            assert any(name == ok or name.startswith(f"{ok}.") for ok in ALLOWED[package]), f"{path.name}: {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_code_is_a_package(package):
    """Without an __init__.py an installed package of the same name would win."""
    assert (ROOT / package / "__init__.py").is_file()


def test_the_network_alone_is_a_package_that_needs_nothing_of_the_project(tmp_path):
    program = f"""
import importlib.util, sys
folder = {str(ROOT / "models")!r}
spec = importlib.util.spec_from_file_location("ifrnet", folder + "/__init__.py", submodule_search_locations=[folder])
ifrnet = importlib.util.module_from_spec(spec)
sys.modules["ifrnet"] = ifrnet
spec.loader.exec_module(ifrnet)
import torch
frames = ifrnet.Interpolator(ifrnet.build("IFRNet_S"), "cpu")(torch.rand(3, 18, 20), torch.rand(3, 18, 20))
assert frames.shape == (1, 3, 18, 20)
assert not {{"models", "losses", "datasets", "utils"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_the_package_asks_for_the_versions_that_the_requirements_name():
    asked = re.search(r"^dependencies = .*?^export = .*?\]$", (ROOT / "pyproject.toml").read_text(), re.M | re.S)[0]
    assert set(re.findall(r'"([^"]*)"', asked)) <= set((ROOT / "requirements.txt").read_text().splitlines())


def test_help_of_an_installed_export_names_the_package_that_is_installed(tmp_path):
    (tmp_path / "ifrnet").symlink_to(ROOT / "models")
    for options in ([], ["-OO"]):  # the latter drops docstrings
        command = [sys.executable, *options, "-m", "ifrnet.export", "--help"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "models.export" not in done.stdout, done.stderr
        assert ("python -m ifrnet.export --format onnx" in done.stdout) is not bool(options)


HELP = """
import os, runpy, sys
import torch  # most of a script's start-up time, once for all of them
folder, *scripts = sys.argv[1:]
for script in scripts:
    if not (child := os.fork()):
        sys.path[0], sys.argv = os.path.dirname(script), [script, "--help"]
        sys.stdout = open(os.path.join(folder, os.path.basename(script)), "w")
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            sys.stdout.flush()
            os._exit(stop.code or 0)  # PyTorch's orderly exit takes longer than all else
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, script
"""


def test_a_script_says_how_to_use_it_from_any_folder(tmp_path):
    said, here = tmp_path / "said", tmp_path / "here"
    said.mkdir()
    here.mkdir()
    command = [sys.executable, "-c", HELP, said, *(ROOT / script for script in SCRIPTS)]
    done = subprocess.run(list(map(str, command)), cwd=here, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    for script in SCRIPTS:
        text = (said / script).read_text()
        assert text.startswith("usage:") and f"python {script}" in text
    assert SCRIPTS and not list(here.iterdir())


def commands():
    """Those that the documents and the heads of the scripts tell to type, in words, from the script's name on."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md")]
    texts = {path: path.read_text() for path in documents}
    texts |= {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in ROOT.glob("*.py")}
    texts |= {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in ROOT.glob("benchmarks/*.py")}
    for path, text in texts.items():
        text = re.sub(r"\\\n *", "", text)  # lines that go on in the next one
        indent = " *" if path.suffix == ".py" else "    "
        lines = re.findall(rf"^{indent}(?:python|torchrun) .*", text, re.M)
        for command in lines + re.findall(r"`([^`]+\.py [^`]+)`", text):
            command = re.sub(r" {2,}.*| *[&|#].*", "", re.sub(r"\n\s*", " ", command.strip()))
            words = shlex.split(command.replace("NAMES", "a.mp4"))
            first = next((k for k, word in enumerate(words) if word.endswith(".py")), None)
            if first is not None:
                yield path.relative_to(ROOT), words[first:]


def test_every_command_that_is_told_of_can_be_typed(monkeypatch):
    parsed = []
    monkeypatch.setattr(cli, "run", lambda main, parser: parsed.append(parser.parse_args()))
    told = list(commands())
    assert len(told) > 75 and len({path for path, _ in told}) > 20
    for path, (script, *words) in told:
        if words and words[-1] == "--val_clips":  # the names are those of a list there
            words.append("a.mp4")
        folder = ROOT if (ROOT / script).is_file() else ROOT / "benchmarks"
        monkeypatch.setattr(sys, "argv", [script, *(word.replace("NAME", "IFRNet_S") for word in words)])
        try:
            runpy.run_path(str(folder / script), run_name="__main__")
        except SystemExit:
            pytest.fail(f"{path}: {shlex.join([script, *words])}")
        args = parsed.pop()
        if getattr(args, "resume_path", None) in models.VARIANTS:  # weights fit no other network
            assert args.model_name == args.resume_path, f"{path}: {shlex.join([script, *words])}"


def test_no_package_of_the_project_does_anything_at_import(tmp_path):
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("models", "losses", "datasets", "utils")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "triton_kernels.py"  # only for machines that have Triton
    ]
    program = f"""
import importlib, random, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy, torch
before = torch.get_rng_state(), random.getstate(), torch.get_num_threads(), torch.get_default_dtype()
for name in {modules!r}:
    importlib.import_module(name.removesuffix(".__init__"))
assert torch.equal(before[0], torch.get_rng_state())
assert before[1:] == (random.getstate(), torch.get_num_threads(), torch.get_default_dtype())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_an_older_python_is_refused_before_an_environment_is_made_with_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.version_info = (3, 9, 18)")
    old, venv = f'env PYTHONPATH={tmp_path} "{sys.executable}"', tmp_path / "venv"
    command = ["make", "setup", f"PYTHON={old}", f"VENV={venv}"]
    environment = os.environ | {"PIP_NO_INDEX": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode and done.stderr.startswith("Python 3.10 or newer is needed, not 3.9; name one")
    assert not venv.exists()
