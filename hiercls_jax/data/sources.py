"""The table of data sources: `data.dataset` names one of them.

A new source is one module beside this one, with the functions of `SourceModule`, and one line in
`SOURCES`. Modules are imported when they are used: TFDS alone takes seconds.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Protocol

from hiercls_jax.data.dataset import DataError, Request, Samples
from hiercls_jax.data.stream import Broadcast
from hiercls_jax.hierarchy import Hierarchy


class SourceModule(Protocol):
    """The functions of a source's module."""

    def hierarchy(self) -> Hierarchy:
        """Return the data set's own hierarchy; only if `Source.needs` has no `hierarchy`."""

    def load_splits(
        self, request: Request, hierarchy: Hierarchy, broadcast: Broadcast
    ) -> Mapping[str, Samples]:
        """Return the splits 'train' and 'test', labelled with the hierarchy's last level.

        Args:
          request: a checked request.
          hierarchy: the classes: those of the file that the request names, or the set's own.
          broadcast: calls its argument in one of several processes, and returns the result in all.

        Raises:
          DataError: for images or labels that cannot be used.
        """


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of a data source without importing its module.

    Args:
      module: its name in `hiercls_jax.data`.
      needs: the fields that it cannot do without, keys of `_FIELDS`.
      named: whether the name of a data set follows after a colon, as in `tfds:NAME`.
      image_size: height and width of every image in pixels; None if `data.image_size` sets them.
      has_files: whether it reads files of `data.dir`; False if it makes its images.
      streams: whether it can read images when they are needed, instead of holding all in memory.
    """

    module: str
    needs: tuple[str, ...] = ()
    named: bool = False
    image_size: int | None = None
    has_files: bool = True
    streams: bool = False


SOURCES = {
    "embedded": Source("embedded", image_size=32, has_files=False),
    "cifar100": Source("cifar100", image_size=32),
    "folder": Source("folder", needs=("hierarchy", "dir", "image_size"), streams=True),
    "arrays": Source("arrays", needs=("hierarchy", "dir")),
    "tfds": Source("tfds_source", needs=("hierarchy",), named=True, streams=True),
}
_NAMES = {kind: f"{kind}:NAME" if source.named else kind for kind, source in SOURCES.items()}
_FIELDS = {  # that a source may need, and how an error asks for them
    "hierarchy": "a hierarchy: a JSON file, or a CSV of (class, parent) rows, in "
    "--config.data.hierarchy",
    "dir": "--config.data.dir (the folder with train/ and test/)",
    "image_size": "--config.data.image_size (pixels that images are resized to, such as 32)",
}


def find(dataset: str) -> Source:
    """Return the source of a data set.

    Args:
      dataset: a key of `SOURCES`, with `:NAME` if the source is `named`.

    Raises:
      DataError: for a data set that no source has.

    >>> find("tfds:mnist").module
    'tfds_source'
    """
    kind, colon, name = dataset.partition(":")
    source = SOURCES.get(kind)
    if source is None or (not name if source.named else colon):
        raise DataError(f"data.dataset '{dataset}' is not one of {', '.join(_NAMES.values())}")
    return source


def check(request: Request) -> None:
    """Check that the fields of a request suit its source; read nothing, import nothing.

    Raises:
      DataError: for a data set that no source has, and fields that it lacks or cannot use.
    """
    source, dataset = find(request.dataset), request.dataset
    missing = [text for field, text in _FIELDS.items()
               if field in source.needs and not getattr(request, field)]  # fmt: skip
    if missing:
        raise DataError(f"data.dataset={dataset} needs {'; '.join(missing)}")
    if request.streaming and not source.streams:
        streaming = [_NAMES[kind] for kind, other in SOURCES.items() if other.streams]
        raise DataError(
            f"run.streaming is for data.dataset={' and '.join(streaming)}, which may be too large "
            f"to hold; {dataset} is not"
        )
    size = source.image_size
    if size is not None and request.image_size not in (None, size):
        raise DataError(
            f"{dataset} is {size}x{size}; data.image_size={request.image_size} is for others"
        )
    if request.dir and not source.has_files:
        raise DataError(f"the {dataset} data set is made, not read: it has no data.dir")


def own_hierarchy(dataset: str) -> Hierarchy | None:
    """Return a data set's own hierarchy, or None if it needs one from a file."""
    source = find(dataset)
    return None if "hierarchy" in source.needs else _module(source).hierarchy()


def load_splits(
    request: Request, hierarchy: Hierarchy, broadcast: Broadcast
) -> Mapping[str, Samples]:
    """Return the splits 'train' and 'test' of a checked request, as `SourceModule` describes."""
    return _module(find(request.dataset)).load_splits(request, hierarchy, broadcast)


def _module(source: Source) -> SourceModule:
    return importlib.import_module(f"hiercls_jax.data.{source.module}")
