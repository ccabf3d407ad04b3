"""Image classification data sets that TFDS has prepared as array_record, without TensorFlow."""

import functools
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from hiercls_jax.data.cache import cached
from hiercls_jax.data.dataset import DataError, Request, Samples, Split
from hiercls_jax.data.image_files import (
    check_image_size,
    decode_image,
    quiet_pillow,
    strict_pillow,
)
from hiercls_jax.data.stream import (
    OnPrimary,
    Stream,
    Survey,
    in_this_process,
    load_surveys,
    survey_images,
)
from hiercls_jax.data.tfds_labels import match_labels
from hiercls_jax.hierarchy import Hierarchy

_FORMATS = ("PNG", "JPEG", "GIF", "BMP")  # that TFDS's image feature stores
_CHUNK = 2000  # encoded images held in memory at once
# Part of the cache's fingerprint: raise it if the same files begin to give other arrays.
_READER = 1


def load_splits(
    request: Request, hierarchy: Hierarchy, on_primary: OnPrimary
) -> Mapping[str, Samples]:
    """Return the splits of `read` or `stream`; see `sources.SourceModule`."""
    what = (request.name, request.dir, request.label_key, hierarchy, request.image_size)
    return stream(*what, on_primary) if request.streaming else read(*what)


def read(
    name: str,
    data_dir: str | os.PathLike | None,
    label_key: str,
    hierarchy: Hierarchy,
    image_size: int | None = None,
) -> dict[str, Split]:
    """Read the splits 'train' and 'test' of a prepared TFDS set, decoded once and then cached.

    Labels are matched to the hierarchy's last level by name, or by index if TFDS has no names. If
    there is no split 'test', 'validation' takes its place. CIFAR-100's coarse labels are checked
    against the hierarchy, image by image.

    Args:
      name: such as 'cifar100', 'imagenet_resized/32x32' or 'cifar100:3.0.2'.
      data_dir: the folder of TFDS's data sets; None: `$TFDS_DATA_DIR`, or TFDS's own default.
      label_key: the feature with the labels of the hierarchy's last level.
      hierarchy: the classes.
      image_size: pixels to resize height and width to; None keeps the images' one size.

    Returns:
      `{'train': Split, 'test': Split}`, images uint8 `[N, H, W, 3]`, labels int32 `[N]` in the
      hierarchy's order.

    Raises:
      DataError: for data sets that are missing or need TensorFlow, a wrong label key, classes that
        do not match, and broken images.
    """
    prepared = _Prepared(name, data_dir, label_key, hierarchy, image_size)

    def build() -> dict[str, Split]:
        splits = {}
        for target, records in prepared.splits.items():
            print(
                f"decoding {len(records)} {records.split} images of {name}, once; then they are "
                "cached",
                flush=True,
            )
            with strict_pillow():
                images, labels = records.decode(np.arange(len(records)))
            splits[target] = Split(images, prepared.labels.convert(records.name, labels))
        _check_same_size(f"'{name}'", *(split.images.shape[1:] for split in splits.values()))
        return splits

    return cached(_cache_name(name), prepared.fingerprint, Split, build)


def stream(
    name: str,
    data_dir: str | os.PathLike | None,
    label_key: str,
    hierarchy: Hierarchy,
    image_size: int | None = None,
    on_primary: OnPrimary = in_this_process,
) -> dict[str, Stream]:
    """Return the same splits as `read`, with images that are decoded on demand.

    Every image is decoded once at the start, as in `folder.stream`.

    Args:
      name, data_dir, label_key, hierarchy, image_size: as in `read`.
      on_primary: as in `stream.load_surveys`.

    Raises:
      DataError: as in `read`, and if the processes see different data sets.
    """
    quiet_pillow()
    prepared = _Prepared(name, data_dir, label_key, hierarchy, image_size)
    shapes = [records(np.arange(1)).shape[1:] for records in prepared.splits.values()]
    _check_same_size(f"'{name}'", *shapes)
    height, width, _ = shapes[0]

    def build() -> dict[str, Survey]:
        surveys = {}
        for target, records in prepared.splits.items():
            print(f"looking at {len(records)} {records.split} images of {name}, once", flush=True)

            def decode(
                numbers: np.ndarray, records: _Records = records
            ) -> tuple[np.ndarray, np.ndarray]:
                images, labels = records.decode(numbers)
                _check_same_size(records.name, shapes[0], images.shape[1:])
                return images, labels

            sums, labels = survey_images(len(records), decode)
            surveys[target] = Survey(sums, prepared.labels.convert(records.name, labels))
        return surveys

    shared = [value for key, value in prepared.fingerprint.items() if key != "files"]
    surveys = load_surveys(
        f"{_cache_name(name)}-survey", prepared.fingerprint, shared, build, on_primary
    )
    return {
        target: Stream(records, np.arange(len(records)), surveys[target], (height, width, 3))
        for target, records in prepared.splits.items()
    }


def data_folder(data_dir: str | os.PathLike | None = None) -> Path:
    """Return `data_dir`, or TFDS's own folder: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser().absolute()


def find(name: str, data_dir: str | os.PathLike | None = None) -> Path | None:
    """Return the folder of the newest prepared version of a data set; None if there is none.

    This looks only at files, because TFDS's own search imports the data set's code, which may need
    TensorFlow.
    """
    matched = re.fullmatch(r"(\w+(?:/[\w.+-]+)?)(?::(\d+\.\d+\.\d+))?", name)
    if not matched or ".." in name:
        raise DataError(
            f"'{name}' is no name of a TFDS set; write it as set, set/config or set:1.0.0"
        )
    path, version = matched.groups()
    versions = _versions(data_folder(data_dir) / path)
    if version:
        versions = [v for v in versions if v.name == version]
    return versions[-1] if versions else None


class _Prepared:
    """A prepared data set, after all checks that need no images.

    Attributes:
      labels: how its labels become the hierarchy's.
      splits: records of 'train' and 'test'.
      fingerprint: determines the decoded images and labels, as JSON values.
    """

    def __init__(
        self,
        name: str,
        data_dir: str | os.PathLike | None,
        label_key: str,
        hierarchy: Hierarchy,
        image_size: int | None,
    ):
        if image_size is not None:
            check_image_size(image_size)
        folder = find(name, data_dir)
        if folder is None:
            raise DataError(_not_found(name, data_folder(data_dir)))
        builder = _open(name, folder)
        features = builder.info.features
        image_key = _image_key(name, features)
        self.labels = match_labels(name, features, label_key, hierarchy)
        self.splits = {
            target: _Records(name, builder, split, image_key, self.labels.keys, image_size)
            for target, split in _choose_splits(name, builder.info.splits).items()
        }
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
        order, coarse = self.labels.order, self.labels.coarse
        self.fingerprint = {
            "reader": _READER,
            "name": name,
            "version": str(builder.version),
            "files": [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats],
            "keys": [image_key, label_key],
            "order": None if order is None else order.tolist(),
            "classes": hierarchy.sizes[-1],
            "coarse": None if coarse is None else coarse.tolist(),
            "image_size": image_size,
        }


class _RawRecords(Protocol):
    """What TFDS returns for a split: random access to its serialised records."""

    def __getitems__(self, numbers: Sequence[int]) -> Sequence[bytes]: ...


class _Records:
    """Decodes a split's records by their numbers; several threads may call it.

    Attributes:
      name: what errors call the split.
      split: its name in TFDS.
    """

    def __init__(
        self,
        name: str,
        builder: tfds.core.DatasetBuilder,
        split: str,
        image_key: str,
        label_keys: Sequence[str],
        image_size: int | None,
    ):
        self.name, self.split = f"'{name}', split '{split}'", split
        self._builder, self._image_key, self._label_keys = builder, image_key, label_keys
        self._shape = None if image_size is None else (image_size, image_size)
        self._count = builder.info.splits[split].num_examples
        if not self._count:
            raise DataError(f"{self.name} has no images; prepare the set again")

    def __len__(self) -> int:
        return self._count

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        return self.decode(numbers)[0]

    def decode(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 `[n, H, W, 3]` and labels int64 `[n, keys]`, n at least 1."""
        labels = np.empty((len(numbers), len(self._label_keys)), np.int64)
        images = np.empty((0, 0, 0, 3), np.uint8)
        for i, (number, record) in enumerate(zip(numbers, self._read(numbers), strict=True)):
            # TFDS's own parsing of a record takes as long as the decoding of its image.
            try:
                feature = tf_example_pb2.Example.FromString(record).features.feature
                encoded = feature[self._image_key].bytes_list.value[0]
                labels[i] = [feature[key].int64_list.value[0] for key in self._label_keys]
            except Exception as error:  # the parser's own error has no public name
                # If a file is cut short, array_record gives empty records instead of an error.
                raise DataError(
                    f"{self.name}: record {number} in {self._builder.data_dir} is broken "
                    f"({error}); delete that folder and prepare it again"
                ) from error
            # Not upright, because TFDS ignores the EXIF orientation too.
            called = f"{self.name}: image {number}"
            image = decode_image(io.BytesIO(encoded), called, self._shape, _FORMATS, upright=False)
            if i == 0:
                images = np.empty((len(numbers), *image.shape), np.uint8)
            _check_same_size(self.name, images.shape[1:], image.shape)
            images[i] = image
        return images, labels

    def _read(self, numbers: np.ndarray) -> Iterator[bytes]:
        """Yield records, serialised `tf.train.Example`s."""
        try:
            for start in range(0, len(numbers), _CHUNK):
                yield from self._source.__getitems__(numbers[start : start + _CHUNK].tolist())
        except Exception as error:  # array_record passes on any error of its C++ code
            raise DataError(
                f"{self.name} in {self._builder.data_dir} cannot be read ({error}); delete that "
                "folder and prepare it again"
            ) from error

    @functools.cached_property
    def _source(self) -> _RawRecords:
        return self._builder.as_data_source(
            self.split,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            file_format="array_record",
        )


def _cache_name(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def _versions(folder: Path) -> list[Path]:
    """Return the folders of prepared versions, the newest last."""
    found = [
        path.parent
        for path in folder.glob("*/features.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
        and (path.parent / "dataset_info.json").is_file()
    ]
    return sorted(found, key=lambda path: [int(part) for part in path.name.split(".")])


def _not_found(name: str, folder: Path) -> str:
    """Return the error for a data set that is not prepared, with configs and versions that are."""
    message = f"'{name}' is not prepared in {folder}"
    base = folder / re.split("[/:]", name)[0]
    configs = sorted({path.parents[1].name for path in base.glob("*/*/features.json")})
    versions = [path.name for path in _versions(base)]
    if configs:
        message += f", which has its configs {', '.join(configs)} (write {base.name}/{configs[0]})"
    elif versions:
        message += f", which has its versions {', '.join(versions)}"
    elif not folder.is_dir():
        message += ", which is no folder"
    return (
        f"{message}; prepare it there, in the file format array_record, or name its folder by "
        "--config.data.dir or the environment variable TFDS_DATA_DIR"
    )


def _open(name: str, folder: Path) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder_from_directory(folder)
        formats = {str(form.value) for form in builder.info.available_file_formats()}
    except Exception as error:  # TFDS passes on any error of its JSON and protobuf parsers
        raise DataError(
            f"{folder} cannot be read by TFDS ({error}); delete it, and prepare it again"
        ) from error
    if "array_record" not in formats:
        raise DataError(
            f"{folder} holds {' and '.join(sorted(formats))} files, which need TensorFlow; "
            f"prepare '{name}' in the file format array_record (with TFDS: "
            f"download_and_prepare(file_format='array_record')) in another folder, and name that "
            "by --config.data.dir"
        )
    return builder


def _image_key(name: str, features: tfds.features.FeaturesDict) -> str:
    """Return the name of the feature that holds the images."""
    keys = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    if "image" in keys:
        keys = ["image"]
    if len(keys) != 1:
        raise DataError(
            f"'{name}' has {len(keys) or 'no'} image features ({', '.join(sorted(features))}); "
            "one, or one called 'image', is needed: this is for image classification sets"
        )
    if features[keys[0]].np_dtype != np.uint8:
        raise DataError(
            f"'{name}' has {np.dtype(features[keys[0]].np_dtype)} images; only uint8 can be read"
        )
    return keys[0]


def _choose_splits(name: str, splits: Collection[str]) -> dict[str, str]:
    """Return the TFDS splits to use as 'train' and 'test'."""
    test = "test" if "test" in splits else "validation"
    if "train" not in splits or test not in splits:
        raise DataError(
            f"'{name}' has the splits {', '.join(sorted(splits)) or '(none)'}; 'train' and 'test' "
            "(or 'validation') are needed"
        )
    if test != "test":
        print(f"note: '{name}' has no split 'test'; 'validation' is used in its place", flush=True)
    return {"train": "train", "test": test}


def _check_same_size(name: str, first: Sequence[int], second: Sequence[int]) -> None:
    if first != second:
        raise DataError(
            f"{name} has images of {first[0]} x {first[1]} and of {second[0]} x {second[1]} "
            "pixels; set --config.data.image_size to the size they should all be resized to"
        )
