"""Any image classification set that TFDS has prepared as array_record, read without TensorFlow."""

import functools
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from hiercls_jax.data.dataset import DataError, Request, Samples, Split, cached
from hiercls_jax.data.folder import (
    check_image_size,
    quiet_pillow,
    rgb_array,
    strict_pillow,
)
from hiercls_jax.data.stream import (
    Once,
    Stream,
    Survey,
    alone,
    look_at,
    surveys,
)
from hiercls_jax.hierarchy import Hierarchy

_FORMATS = ("PNG", "JPEG", "GIF", "BMP")  # what TFDS's image feature stores
_CHUNK = 2000  # encoded images held in memory at once
# Part of the cache's fingerprint: to be raised where the same files give other arrays.
_READER = 1


def load_splits(request: Request, hierarchy: Hierarchy, once: Once) -> Mapping[str, Samples]:
    """Return the splits of `read` or `stream`; see `sources.SourceModule`."""
    what = (request.name, request.dir, request.label_key, hierarchy, request.image_size)
    return stream(*what, once) if request.streaming else read(*what)


def read(
    name: str,
    data_dir,
    label_key: str,
    hierarchy: Hierarchy,
    image_size: int | None = None,
) -> dict[str, Split]:
    """Read the splits 'train' and 'test' of a prepared TFDS set, decoded once and then cached.

    TFDS's labels are matched to the hierarchy's last level by name where TFDS has names, and
    else by index. Where there is no split 'test', 'validation' takes its place. CIFAR-100's
    coarse labels are checked against the hierarchy, image by image.

    Args:
      name: such as 'cifar100', 'imagenet_resized/32x32' or 'cifar100:3.0.2'.
      data_dir: the folder that holds the set's; None: `$TFDS_DATA_DIR`, or TFDS's own default.
      label_key: the feature that holds the labels of the hierarchy's last level.
      hierarchy: the classes.
      image_size: pixels to resize height and width to; None keeps the images' one size.

    Returns:
      `{'train': Split, 'test': Split}`, images uint8 `[N, H, W, 3]`, labels int32 `[N]` in the
      hierarchy's order.

    Raises:
      DataError: for sets that are missing or not readable without TensorFlow, a wrong label key,
        classes that do not match, and broken images.
    """
    prepared = _Prepared(name, data_dir, label_key, hierarchy, image_size)

    def build() -> dict[str, Split]:
        result = {}
        for target, records in prepared.splits.items():
            print(
                f"decoding {len(records)} {records.split} images of {name}, once; then they are "
                "cached",
                flush=True,
            )
            with strict_pillow():
                images, labels = records.decode(np.arange(len(records)))
            result[target] = Split(images, prepared.labels(records, labels))
        _check_sizes(f"'{name}'", *(split.images.shape[1:] for split in result.values()))
        return result

    return cached(re.sub(r"\W+", "-", name), prepared.fingerprint, build)


def stream(
    name: str,
    data_dir,
    label_key: str,
    hierarchy: Hierarchy,
    image_size: int | None = None,
    once: Once = alone,
) -> dict[str, Stream]:
    """Return the splits that `read` returns, the same images in the same order, but none in memory.

    Each image is decoded once at the start, as `folder.stream` does it.

    Args:
      name, data_dir, label_key, hierarchy, image_size: as in `read`.
      once: as in `stream.surveys`.

    Raises:
      DataError: as `read` does, and where processes do not find the same set.
    """
    quiet_pillow()
    prepared = _Prepared(name, data_dir, label_key, hierarchy, image_size)
    first = {target: records(np.arange(1)) for target, records in prepared.splits.items()}
    shapes = [images.shape[1:] for images in first.values()]
    _check_sizes(f"'{name}'", *shapes)

    def look() -> dict[str, Survey]:
        result = {}
        for target, records in prepared.splits.items():
            print(f"looking at {len(records)} {records.split} images of {name}, once", flush=True)

            def checked(numbers, records=records):
                images, labels = records.decode(numbers)
                _check_sizes(records.what, shapes[0], images.shape[1:])
                return images, labels

            sums, labels = look_at(len(records), checked)
            result[target] = Survey(sums, prepared.labels(records, labels))
        return result

    shared = [value for key, value in prepared.fingerprint.items() if key != "files"]
    called = re.sub(r"\W+", "-", name) + "-survey"
    found = surveys(called, prepared.fingerprint, shared, look, once)
    return {
        target: Stream(records, np.arange(len(records)), found[target], shapes[0])
        for target, records in prepared.splits.items()
    }


def data_folder(data_dir=None) -> Path:
    """Return `data_dir`, or TFDS's own folder: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser().absolute()


def find(name: str, data_dir=None) -> Path | None:
    """Return the folder of the newest prepared version of a set, or None where there is none.

    Only files are looked at: TFDS's own search imports the set's code, which may need TensorFlow.
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
    """A prepared set, once all that can be refused without its images is past."""

    def __init__(self, name: str, data_dir, label_key: str, hierarchy: Hierarchy, image_size):
        if image_size is not None:
            check_image_size(image_size)
        folder = find(name, data_dir)
        if folder is None:
            raise DataError(_not_found(name, data_folder(data_dir)))
        builder = _open(name, folder)
        features = builder.info.features
        image_key = _image_key(name, features)
        self._hierarchy = hierarchy
        self._order = _match_labels(name, features, label_key, hierarchy)
        self._coarse = _coarse_table(builder.info.name, features, label_key, hierarchy, self._order)
        label_keys = [label_key] if self._coarse is None else [label_key, "coarse_label"]
        self.splits = {
            target: _Records(name, builder, split, image_key, label_keys, image_size)
            for target, split in _choose_splits(name, builder.info.splits).items()
        }
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
        self.fingerprint = {
            "reader": _READER,
            "name": name,
            "version": str(builder.version),
            "files": [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats],
            "keys": [image_key, label_key],
            "order": None if self._order is None else self._order.tolist(),
            "classes": hierarchy.sizes[-1],
            "coarse": None if self._coarse is None else self._coarse.tolist(),
            "image_size": image_size,
        }

    def labels(self, records: "_Records", labels: np.ndarray) -> np.ndarray:
        """Return the hierarchy's labels int32 `[N]` of those that a split's records hold."""
        fine = _to_hierarchy(records.what, labels[:, 0], self._order, self._hierarchy)
        if self._coarse is not None:
            _check_coarse(records.what, fine, labels[:, 1], self._coarse)
        return fine


def _versions(folder: Path) -> list[Path]:
    found = [
        path.parent
        for path in folder.glob("*/features.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
        and (path.parent / "dataset_info.json").is_file()
    ]
    return sorted(found, key=lambda path: [int(part) for part in path.name.split(".")])


def _not_found(name: str, folder: Path) -> str:
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


def _open(name: str, folder: Path):
    try:
        builder = tfds.builder_from_directory(folder)
        formats = {str(form.value) for form in builder.info.available_file_formats()}
    except Exception as error:  # TFDS raises what its JSON and protobuf parsers raise.
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


def _image_key(name: str, features) -> str:
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


def _is_label(feature) -> bool:
    return not feature.shape and np.issubdtype(feature.np_dtype, np.integer)


def _match_labels(name: str, features, label_key: str, hierarchy: Hierarchy) -> np.ndarray | None:
    """Return int32 `[F]`, the hierarchy's class of each of TFDS's, or None to match by index."""
    usable = [key for key, value in features.items() if _is_label(value)]
    if label_key not in usable:
        raise DataError(
            f"'{name}' has no integer label '{label_key}'; --config.data.label_key can be "
            f"{' or '.join(usable) or 'nothing here: the set has no integer label'}"
        )
    feature, classes = features[label_key], hierarchy.names[-1]
    if not isinstance(feature, tfds.features.ClassLabel):
        return None
    names = _names(feature)
    if names is None and set(feature.names) != set(classes):
        if feature.num_classes != len(classes):
            raise DataError(
                f"'{label_key}' of '{name}' has {feature.num_classes} classes, but the "
                f"hierarchy's last level has {len(classes)}; they must be the same"
            )
        return None
    names = names or feature.names
    for these, those, where in (
        (names, classes, "the hierarchy's last level"),
        (classes, names, f"'{label_key}' of '{name}'"),
    ):
        missing = sorted(set(these) - set(those))
        if missing:
            raise DataError(
                f"{where} lacks {len(missing)} of {len(these)} classes: {', '.join(missing[:5])}"
                f"{', …' if len(missing) > 5 else ''}; the hierarchy's names must be TFDS's"
            )
    index = {label: i for i, label in enumerate(classes)}
    return np.array([index[label] for label in names], np.int32)


def _names(feature) -> list[str] | None:
    # TFDS numbers classes whose names it does not know.
    numbered = feature.names == [str(i) for i in range(feature.num_classes)]
    return None if numbered else feature.names


def _coarse_table(
    name: str, features, label_key: str, hierarchy: Hierarchy, order
) -> np.ndarray | None:
    """Return int32 `[F]`, TFDS's coarse label of each of the hierarchy's fine classes.

    None where there is nothing to check: another set, or a hierarchy none of whose levels is
    CIFAR-100's coarse one.
    """
    if name != "cifar100" or label_key != "label" or "coarse_label" not in features:
        return None
    names = features["coarse_label"].names
    for level, classes in enumerate(hierarchy.names[:-1]):
        if set(classes) == set(names):
            to_tfds = np.array([names.index(label) for label in classes], np.int32)
            return to_tfds[hierarchy.ancestors(level)]
    if order is None and hierarchy.num_levels > 1 and hierarchy.sizes[0] == len(names):
        return hierarchy.fine_to_coarse
    return None


def _check_coarse(what: str, labels: np.ndarray, above: np.ndarray, coarse: np.ndarray) -> None:
    wrong = np.flatnonzero(coarse[labels] != above)
    if wrong.size:
        first = wrong[0]
        raise DataError(
            f"{what}: image {first} has coarse_label {above[first]}, but the hierarchy puts its "
            f"fine class {labels[first]} under {coarse[labels[first]]} ({wrong.size} such images); "
            "correct the hierarchy, or prepare the set again"
        )


def _choose_splits(name: str, splits) -> dict[str, str]:
    test = "test" if "test" in splits else "validation"
    if "train" not in splits or test not in splits:
        raise DataError(
            f"'{name}' has the splits {', '.join(sorted(splits)) or '(none)'}; 'train' and 'test' "
            "(or 'validation') are needed"
        )
    if test != "test":
        print(f"note: '{name}' has no split 'test'; 'validation' is used in its place", flush=True)
    return {"train": "train", "test": test}


def _to_hierarchy(what: str, labels: np.ndarray, order, hierarchy: Hierarchy) -> np.ndarray:
    count = hierarchy.sizes[-1] if order is None else len(order)
    bad = np.flatnonzero((labels < 0) | (labels >= count))
    if bad.size:
        hint = "; the split has no labels" if labels[bad[0]] == -1 else ""
        raise DataError(
            f"{what}: image {bad[0]} has label {labels[bad[0]]}, allowed are 0 to {count - 1}{hint}"
        )
    return labels.astype(np.int32) if order is None else order[labels]


class _Records:
    """Decodes a split's records by their numbers; threads may call it together."""

    def __init__(self, name: str, builder, split: str, image_key: str, label_keys, image_size):
        self.what, self.split = f"'{name}', split '{split}'", split
        self._builder, self._image_key, self._label_keys = builder, image_key, label_keys
        self._shape = None if image_size is None else (image_size, image_size)
        self._count = builder.info.splits[split].num_examples
        if not self._count:
            raise DataError(f"{self.what} has no images; prepare the set again")

    def __len__(self) -> int:
        return self._count

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        return self.decode(numbers)[0]

    def decode(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 `[n, H, W, 3]` and labels int64 `[n, keys]`."""
        labels = np.empty((len(numbers), len(self._label_keys)), np.int64)
        images = None
        for i, (number, record) in enumerate(zip(numbers, self._read(numbers), strict=True)):
            # TFDS's own parsing of a record takes as long as the decoding of its image.
            try:
                feature = tf_example_pb2.Example.FromString(record).features.feature
                encoded = feature[self._image_key].bytes_list.value[0]
                labels[i] = [feature[key].int64_list.value[0] for key in self._label_keys]
            except Exception as error:  # the parser's own error has no public name
                # array_record gives empty records, not an error, for what a short file lacks.
                raise DataError(
                    f"{self.what}: record {number} in {self._builder.data_dir} is broken "
                    f"({error}); delete that folder and prepare it again"
                ) from error
            # TFDS does not turn images by their EXIF orientation, so neither is it done here.
            called = f"{self.what}: image {number}"
            image = rgb_array(io.BytesIO(encoded), called, self._shape, _FORMATS, upright=False)
            if images is None:
                images = np.empty((len(numbers), *image.shape), np.uint8)
            _check_sizes(self.what, images.shape[1:], image.shape)
            images[i] = image
        return images, labels

    def _read(self, numbers: np.ndarray):
        """Yield records, serialised `tf.train.Example`s."""
        try:
            for start in range(0, len(numbers), _CHUNK):
                yield from self._source.__getitems__(numbers[start : start + _CHUNK].tolist())
        except Exception as error:  # array_record raises whatever its C++ does
            raise DataError(
                f"{self.what} in {self._builder.data_dir} cannot be read ({error}); delete that "
                "folder and prepare it again"
            ) from error

    @functools.cached_property
    def _source(self):
        return self._builder.as_data_source(
            self.split,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            file_format="array_record",
        )


def _check_sizes(what: str, first, second) -> None:
    if first != second:
        raise DataError(
            f"{what} has images of {first[0]} x {first[1]} and of {second[0]} x {second[1]} "
            "pixels; set --config.data.image_size to the size they should all be resized to"
        )
