"""The rules that keep the parts apart: who may import whom, and that scripts start from anywhere."""

import ast
import importlib
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGES = ("models", "losses", "datasets", "utils", "benchmarks")
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
ALLOWED = {  # package -> the modules of the project that it may import from
    "models": (),
    "losses": ("models.native", "models.triton_kernels"),
    "datasets": ("datasets", "utils.io", "utils.shots", "utils.cli"),
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


def test_training_commands_of_the_readme_fit_the_weights_that_they_start_from():
    lines = [line.partition("  #")[0] for line in (ROOT / "README.md").read_text().splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith(("    python train_", "    torchrun "))]
    assert len(commands) > 5
    for command in commands:
        script = next(number for number, word in enumerate(command) if word.endswith(".py"))
        args = importlib.import_module(bare(command[script])).parser().parse_args(command[script + 1 :])
        assert args.resume_path in (None, args.model_name), command


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
