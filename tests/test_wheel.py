"""The built wheel, installed into an environment outside the checkout, as users get it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_up import page_data

from hiercls_jax import experiment
from hiercls_jax.__main__ import COMMANDS
from hiercls_jax.experiment import run
from hiercls_jax.models.variants import VARIANTS

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def called(*command: str | Path, cwd: Path) -> str:
    """What a program prints, if it prints no error."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env={**environment, "JAX_PLATFORMS": "cpu"}, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources, with nothing downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "hiercls_jax", folder / "hiercls_jax", ignore=ignored)
    options = ("-q", "--no-deps", "--no-index", "--no-build-isolation")
    called(*PIP, "wheel", *options, "-w", folder / "dist", folder, cwd=folder)
    (path,) = (folder / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of programs of a fresh environment with the wheel, and the tests' dependencies."""
    environment = tmp_path_factory.mktemp("environment")
    called(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    python = environment / "bin" / "python"
    options = ("-q", "--no-deps", "--no-index", "--no-warn-script-location")
    called(*PIP, "--python", python, "install", *options, wheel, cwd=environment)
    (site,) = environment.glob("lib/python*/site-packages")
    # The folders are searched for packages, but their own .pth files are not read: the checkout,
    # if it is installed in editable mode, is not there.
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(folders))
    where = called(python, "-c", "import hiercls_jax as h; print(h.__file__)", cwd=environment)
    assert Path(where.strip()).is_relative_to(site)
    return environment / "bin"


def test_the_wheel_has_what_the_package_needs(wheel):
    """Every module and data file of the package is in it, and nothing but the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    paths = [path for path in (ROOT / "hiercls_jax").rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT).as_posix() for path in paths if path.suffix != ".pyc"}
    assert names == wanted
    assert {"hiercls_jax/py.typed", "hiercls_jax/report/html/page.html"} <= names


def test_the_program_lists_its_commands(installed, tmp_path):
    """`hiercls-jax` alone names every command."""
    shown = called(installed / "hiercls-jax", cwd=tmp_path)
    for name in COMMANDS:
        assert f"\n  hiercls-jax {name} " in shown


def test_a_named_config_needs_no_file(installed, tmp_path):
    """`hiercls-jax train merge1:quick` in an empty folder is the run of `configs/merge1.py:quick`.

    Here as a summary, which leaves the folder empty.
    """
    command = ("train", "merge1:quick", "--mode=summary", "--config.model.width=2")
    shown = called(installed / "hiercls-jax", *command, cwd=tmp_path)
    config = experiment.compose("merge1", "quick")
    config.model.width = 2.0
    assert shown == run.summary(config)[1] + "\n"
    assert not list(tmp_path.iterdir())


def test_the_page_finds_its_files(installed, tmp_path):
    """`hiercls-jax adapt --report` writes a page, whose parts come from the wheel."""
    (tmp_path / "tree.csv").write_text("animal,\nvehicle,\ncat,animal\ndog,animal\ncar,vehicle\n")
    np.save(tmp_path / "pc.npy", np.float32([[0.75, 0.25]]))
    np.save(tmp_path / "pf.npy", np.float32([[0.375, 0.125, 0.5]]))
    command = ("adapt", "--hierarchy=tree.csv", "--coarse=pc.npy", "--fine=pf.npy", "--report")
    called(installed / "hiercls-jax", *command, "--out=adapted", cwd=tmp_path)
    assert page_data((tmp_path / "adapted" / "report.html").read_text())["record"]["alpha"] == 1


def test_a_grid_needs_no_file(installed, tmp_path):
    """`hiercls-jax grid quick` in an empty folder starts runs by names of configs, not by files."""
    shown = called(installed / "hiercls-jax", "grid", "quick", "--dry_run", cwd=tmp_path)
    lines = shown.splitlines()
    assert len(lines) == 5 * len(VARIANTS)
    for line, variant in zip(lines, 5 * list(VARIANTS), strict=True):
        assert f"to begin  python -m hiercls_jax.main {variant}:quick,arch=resnet11,seed=" in line
    assert not list(tmp_path.iterdir())
