"""The files under results/ can be made again from the summaries that are committed there."""

from pathlib import Path

import pytest

from hiercls_jax.commands import compare

RESULTS = Path(__file__).parents[1] / "results"
SUMMARIES = sorted(RESULTS.rglob("summary.npz"))


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.parent.name)
def test_a_committed_comparison_is_made_from_its_summary_byte_for_byte(path, tmp_path):
    """Every table and figure, under the versions of constraints.txt; no other file lies there."""
    assert compare.main(["compare", str(path), f"--out={tmp_path}"]) == 0
    committed = {file.name for file in path.parent.iterdir() if file.is_file()}
    assert {file.name for file in tmp_path.iterdir()} == committed - {"summary.npz"}
    for made in tmp_path.iterdir():
        # A PNG's bytes depend on the installed zlib; the SVG has the same curves.
        if made.suffix != ".png":
            assert made.read_bytes() == (path.parent / made.name).read_bytes(), made.name


def test_a_committed_summary_is_small():
    """There is at least one summary, and each has at most 5 MB."""
    assert SUMMARIES
    assert all(path.stat().st_size <= 5e6 for path in SUMMARIES)
