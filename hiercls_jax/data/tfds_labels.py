"""Labels of a TFDS data set, matched to the classes of a hierarchy."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from hiercls_jax.data.dataset import DataError
from hiercls_jax.hierarchy import Hierarchy

_COARSE_KEY = "coarse_label"  # CIFAR-100's second label


@dataclasses.dataclass(frozen=True)
class LabelMatch:
    """How the labels of a TFDS data set become those of a hierarchy's last level.

    Args:
      keys: the features to read: the label, and CIFAR-100's coarse label if it is to be checked.
      order: int32 `[F]`, the hierarchy's class of each TFDS class; None if they are the same.
      classes: the number of TFDS classes, F.
      coarse: int32 `[F]`, the TFDS coarse label of each class of the hierarchy's last level; None
        if there is nothing to check.
    """

    keys: tuple[str, ...]
    order: np.ndarray | None
    classes: int
    coarse: np.ndarray | None

    def convert(self, name: str, labels: np.ndarray) -> np.ndarray:
        """Return labels of the hierarchy's last level.

        Args:
          name: what errors call the split.
          labels: int64 `[N, len(keys)]`, as TFDS stores them.

        Returns:
          int32 `[N]`.

        Raises:
          DataError: for a label out of range, or a coarse label that the hierarchy contradicts.
        """
        fine = labels[:, 0]
        bad = np.flatnonzero((fine < 0) | (fine >= self.classes))
        if bad.size:
            label = fine[bad[0]]
            hint = "; the split has no labels" if label == -1 else ""
            raise DataError(
                f"{name}: image {bad[0]} has label {label}, allowed are 0 to "
                f"{self.classes - 1}{hint}"
            )
        fine = fine.astype(np.int32) if self.order is None else self.order[fine]
        if self.coarse is not None:
            _check_coarse(name, fine, labels[:, 1], self.coarse)
        return fine


def match_labels(
    name: str, features: tfds.features.FeaturesDict, label_key: str, hierarchy: Hierarchy
) -> LabelMatch:
    """Match TFDS's classes to the hierarchy's last level by name, or by index if they have none.

    Args:
      name: the data set.
      features: of the data set.
      label_key: the feature with the labels of the last level.
      hierarchy: the classes.

    Raises:
      DataError: for a feature that is not a label, and for classes that only one side has.
    """
    usable = [key for key, value in features.items() if _is_label(value)]
    if label_key not in usable:
        raise DataError(
            f"'{name}' has no integer label '{label_key}'; --config.data.label_key can be "
            f"{' or '.join(usable) or 'nothing here: the set has no integer label'}"
        )
    order = _order(name, label_key, features[label_key], hierarchy)
    coarse = None
    if name.partition(":")[0] == "cifar100" and label_key == "label" and _COARSE_KEY in features:
        coarse = _coarse_labels(features[_COARSE_KEY].names, hierarchy, order)
    keys = (label_key,) if coarse is None else (label_key, _COARSE_KEY)
    classes = hierarchy.sizes[-1] if order is None else len(order)
    return LabelMatch(keys, order, classes, coarse)


def _is_label(feature: tfds.features.FeatureConnector) -> bool:
    return not feature.shape and np.issubdtype(feature.np_dtype, np.integer)


def _order(
    name: str, label_key: str, feature: tfds.features.FeatureConnector, hierarchy: Hierarchy
) -> np.ndarray | None:
    """Return int32 `[F]`, the hierarchy's class of each TFDS class; None to match by index."""
    if not isinstance(feature, tfds.features.ClassLabel):
        return None
    names, classes = feature.names, hierarchy.names[-1]
    # TFDS numbers the classes if it does not know their names.
    numbered = names == [str(i) for i in range(feature.num_classes)]
    if numbered and set(names) != set(classes):
        if feature.num_classes != len(classes):
            raise DataError(
                f"'{label_key}' of '{name}' has {feature.num_classes} classes, but the "
                f"hierarchy's last level has {len(classes)}; they must be the same"
            )
        return None
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


def _coarse_labels(
    names: list[str], hierarchy: Hierarchy, order: np.ndarray | None
) -> np.ndarray | None:
    """Return int32 `[F]`, the TFDS coarse label of each class of the hierarchy's last level.

    None if no level of the hierarchy is CIFAR-100's coarse one, by its names or, if the fine
    classes are matched by index, by its size.
    """
    for level, classes in enumerate(hierarchy.names[:-1]):
        if set(classes) == set(names):
            to_tfds = np.array([names.index(label) for label in classes], np.int32)
            return to_tfds[hierarchy.ancestors(level)]
    if order is None and hierarchy.num_levels > 1 and hierarchy.sizes[0] == len(names):
        return hierarchy.fine_to_coarse
    return None


def _check_coarse(name: str, fine: np.ndarray, stored: np.ndarray, coarse: np.ndarray) -> None:
    wrong = np.flatnonzero(coarse[fine] != stored)
    if wrong.size:
        first = wrong[0]
        raise DataError(
            f"{name}: image {first} has coarse_label {stored[first]}, but the hierarchy puts its "
            f"fine class {fine[first]} under {coarse[fine[first]]} ({wrong.size} such images); "
            "correct the hierarchy, or prepare the set again"
        )
