"""The notebooks run from the first cell to the last, contain no outputs, and give one address."""

import re
import time
from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = ("adjust",)  # the others take up to a minute each
EXECUTED = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.notebooks)
    for path in NOTEBOOKS
]
ADDRESS = re.search(r"^    https://github\.com/(\S+)$", (FOLDER / "README.md").read_text(), re.M)[1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_short_and_stripped(path):
    """A notebook has at most 15 cells, and no outputs, counts or metadata of its last run."""
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 15
    for cell in notebook.cells:
        assert not cell.metadata
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_the_address(path):
    """The badge and the first code cell have the address in notebooks/README.md."""
    title, install, *_ = nbformat.read(path, 4).cells
    colab = f"https://colab.research.google.com/github/{ADDRESS}/blob/main/notebooks/{path.name}"
    assert f"]({colab})" in title.source
    assert f'REPOSITORY = "https://github.com/{ADDRESS}"' in install.source
    assert f"| `{path.name}` |" in (FOLDER / "README.md").read_text()
    assert f"]({colab})" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("path", EXECUTED)
def test_notebook_runs(path, tmp_path, monkeypatch, capsys):
    """Every cell runs without an error and without output on stderr, and one draws a figure.

    The test prints the time and does not check it, because the machine may be slow or busy.
    """
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # BLAS threads spin: a third of the processor time
    if path.stem not in QUICK:
        monkeypatch.delenv("XLA_FLAGS")  # training needs optimised programs
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))  # the checkout, with its results
    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": tmp_path}}
    start = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    seconds = time.monotonic() - start
    with capsys.disabled():
        print(f"{path.name} ran in {seconds:.0f} s")
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    stderr = [out.text for out in outputs if out.get("name") == "stderr"]
    assert not stderr


def test_there_are_notebooks():
    """The folder contains every notebook that is quick, so the tests above do run."""
    assert set(QUICK) < {path.stem for path in NOTEBOOKS}
