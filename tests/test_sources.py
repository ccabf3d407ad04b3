"""The table of data sources: light until used, and all that a new source needs."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
import small

from hiercls_jax import experiment
from hiercls_jax.data import sources
from hiercls_jax.data.dataset import DataError, Request
from hiercls_jax.data.sources import SOURCES, Source


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_offers_its_functions(kind):
    """Every module loads splits, and has a hierarchy of its own unless it needs one from a file."""
    module = sources._module(SOURCES[kind])
    assert callable(module.load_splits)
    assert ("hierarchy" in SOURCES[kind].needs) != hasattr(module, "hierarchy")


def test_nothing_heavy_is_imported_for_a_check():
    """A check and a hierarchy import neither TFDS nor Pillow."""
    code = (
        "import sys\n"
        "from hiercls_jax.data import sources\n"
        "from hiercls_jax.data.dataset import Request\n"
        "for name in ('embedded', 'cifar100', 'folder', 'tfds:x'):\n"
        "    fields = {'hierarchy': 'x', 'dir': 'x', 'image_size': 8} if name[0] in 'ft' else {}\n"
        "    sources.check(Request(name, **fields))\n"
        "    sources.own_hierarchy(name)\n"
        "print(sorted({'tensorflow_datasets', 'PIL'} & set(sys.modules)))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_new_source_is_a_module_and_a_line(monkeypatch):
    """Config, hierarchy, image size and images of a source that the table has just been given."""
    dots = types.ModuleType("hiercls_jax.data.dots")
    dots.hierarchy = lambda: small.HIERARCHY
    dots.load_splits = lambda request, hierarchy, broadcast: {
        "train": small.split(40), "test": small.split(8)
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, dots.__name__, dots)
    monkeypatch.setitem(SOURCES, "dots", Source("dots", image_size=8, has_files=False))
    config = experiment.compose("merge1", "quick,dataset=dots,batch=4")
    experiment.check(config)
    assert experiment.image_shape(config) == (8, 8, 3)
    data = experiment.load_data(config)
    assert (data.name, data.hierarchy, len(data.test)) == ("dots", small.HIERARCHY, 8)
    np.testing.assert_array_equal(data.test.images, small.split(8).images)


def test_all_missing_fields_are_named_at_once():
    """An error lists every field that a source lacks, and none that it has."""
    with pytest.raises(DataError) as error:
        sources.check(Request("folder", dir="photos"))
    assert "--config.data.hierarchy" in str(error.value)
    assert "--config.data.image_size" in str(error.value)
    assert "--config.data.dir" not in str(error.value)
