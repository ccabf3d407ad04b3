"""Adaptation as a scikit-learn estimator. It needs `pip install "hiercls_jax[sklearn]"`.

`examples/digits_svm.py` adapts two support vector machines with it.
"""

from collections.abc import Sequence
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from hiercls_jax.adaptation.alpha import AlphaSearch, alpha_search
from hiercls_jax.adaptation.answers import DECISIONS, answer_nodes
from hiercls_jax.adaptation.checks import SUM_TOLERANCE, check_weights
from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.tree import interpolate
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.hierarchy.nodes import node_names, nodes_of

FLOATS = (np.float64, np.float32)  # other dtypes become the first


class HierarchyAdjuster(OneToOneFeatureMixin, ClassifierMixin, TransformerMixin, BaseEstimator):
    """Adapt the probabilities of a hierarchy's levels, from any classifiers, to each other.

    `fit` chooses alpha, `transform` returns the adapted probabilities of all levels, `predict`
    decides for a class and `predict_path` for the classes above it too. `predict_proba` returns the
    probabilities of the leaves: the classes of the last level and, in a ragged hierarchy, the
    leaves above it.

    X is float `[N, Σ N_l]`, the levels' probabilities side by side, coarsest level first, as
    `np.hstack` returns them. They are non-negative, and each level sums to 1 within 0.001, in a
    ragged hierarchy together with the leaves above it (`hiercls_jax.adaptation.tree.marginals`
    converts softmaxes). Adaptation computes in the dtype of X, float32 or float64. y `[N]` holds
    the samples' leaves: numbers are leaf ids, text is leaf names.

    Fit it to rows that the classifiers were not trained on. On their training rows they are
    overconfident, which biases alpha.

    Args:
      hierarchy: a `Hierarchy`; `fit` requires one.
      rule: the target of adaptation, a key of `hiercls_jax.adaptation.rules.RULES`; 'kl' is
        Algorithm 1.
      weights: L non-negative numbers, the levels' weights in the target, for rules that weigh
        levels ('kl', 'geometric_pooling'); None for equal weights.
      alpha: 'tune', or a number from 0 (no adaptation) through 1 (the levels agree) to the rule's
        largest, 2 for 'kl' on two equal levels. If alpha is a number, y only determines whether
        classes are ids or names.
      decision: how to predict, a key of `hiercls_jax.adaptation.answers.DECISIONS`: 'leaf' for the
        most probable leaf. 'minimum_risk' may predict a class above the leaves, and '' for the
        root, so it needs leaf names in y.
      objective: the objective of tuning: 'sum' of the levels' top-1 errors, the number of the
        level whose error counts, or 'nll'; as in `alpha_search`.

    Attributes:
      alpha_: the alpha in use.
      search_: the `AlphaSearch` that tuned it, with all minimisers and the error curves; None if
        alpha was given.
      classes_: `[num_leaves]`, sorted, the columns of `predict_proba`: leaf ids or leaf names, as
        in y, including leaves that y lacks.
      n_features_in_, feature_names_in_: as in scikit-learn.

    Raises:
      ValueError: from `fit`, for parameters that are not allowed and for classes of y that are no
        leaves; from all methods, for rows of X that are no probabilities.

    Source: Dutt, Pellerin and Quénot (CBMI 2017), Sections 3.2 and 3.3.

    >>> animals = ("cat", "dog"), ("lynx", "lion", "pug")
    >>> pets = Hierarchy(("kind", "animal"), animals, ((0, 0, 1),))
    >>> X = np.hstack([[[0.75, 0.25], [0.5, 0.5]], [[0.375, 0.125, 0.5], [0, 0.25, 0.75]]])
    >>> adjuster = HierarchyAdjuster(pets).fit(X, ["lynx", "pug"])
    >>> adjuster.predict(X).tolist(), adjuster.classes_.tolist()
    (['lynx', 'pug'], ['lion', 'lynx', 'pug'])
    >>> adjuster.set_params(alpha=1.0).fit(X, ["lynx", "pug"]).transform(X)[0].tolist()
    [0.625, 0.375, 0.46875, 0.15625, 0.375]
    >>> adjuster.predict_path(X).tolist()
    [['cat', 'lynx'], ['dog', 'pug']]
    """

    def __init__(
        self,
        hierarchy: Hierarchy | None = None,
        *,
        rule: str = "kl",
        weights: Sequence[float] | None = None,
        alpha: float | str = "tune",
        objective: str | int = "sum",
        decision: str = "leaf",
    ) -> None:
        self.hierarchy = hierarchy
        self.rule = rule
        self.weights = weights
        self.alpha = alpha
        self.objective = objective
        self.decision = decision

    def fit(self, X: ArrayLike, y: ArrayLike) -> "HierarchyAdjuster":
        """Choose alpha on X `[N, Σ N_l]` and y `[N]`, and return the estimator."""
        rows, classes = validate_data(self, X, y, dtype=FLOATS)
        check_classification_targets(classes)
        largest = self._check_parameters()
        self._check_probabilities(rows)
        leaf_ids = self._learn_classes(classes)
        target = np.hstack(self._target(self._levels(rows)))  # always, for the rule's own checks
        self.search_: AlphaSearch | None = None
        if self.alpha == "tune":
            cuts = range(self._tree.num_levels)
            self.search_ = alpha_search(
                [self._cut(rows, level) for level in cuts],
                [self._cut(target, level) for level in cuts],
                self._tree.labels(leaf_ids),
                largest=largest,
                objective=self.objective,
            )
        self.alpha_ = self.search_.alpha if self.search_ else float(self.alpha)
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Return the adapted probabilities of all levels, as X has them: `[N, Σ N_l]`."""
        return self._adapt(X)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the adapted probabilities of the leaves, `[N, num_leaves]`, as in `classes_`."""
        return self._cut(self._adapt(X), -1)[:, self._order]

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the answer to each row, `[N]`: by default its most probable leaf."""
        if self.decision == "leaf":
            most_probable = np.argmax(self.predict_proba(X), axis=1)
            return self.classes_[most_probable]
        nodes = answer_nodes(self._decide(X), self._tree)
        if self.classes_.dtype.kind not in "biuf":
            return np.array(node_names(self._tree), self.classes_.dtype)[nodes]
        leaf_ids = np.full(len(nodes_of(self._tree).pairs), -1)
        leaf_ids[nodes_of(self._tree).leaves] = np.arange(self._tree.num_leaves)
        return leaf_ids[nodes]

    def predict_path(self, X: ArrayLike) -> np.ndarray:
        """Return the class of each row on every level, str `[N, L]`; '' below the answer.

        Tables of this form are what hiclass and `hiercls_jax.metrics.path_scores` take.
        """
        rows = self._decide(X)
        path = [
            np.array([*names[:size], *[""] * (len(names) - size + 1)])[of_level]  # no leaf twice
            for names, size, of_level in zip(
                map(self._tree.cut_names, range(self._tree.num_levels)), self._tree.sizes, rows.T,
                strict=True,
            )
        ]  # fmt: skip
        return np.stack(path, axis=1)

    def _decide(self, X: ArrayLike) -> np.ndarray:
        """Return the answers to rows of X, int32 `[N, L]`."""
        return DECISIONS[self.decision](self._levels(self._adapt(X)), self._tree)

    @property
    def _tree(self) -> Hierarchy:
        assert self.hierarchy is not None  # `fit` has checked it
        return self.hierarchy

    def _adapt(self, X: ArrayLike) -> np.ndarray:
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=FLOATS, reset=False)
        self._check_probabilities(rows)
        levels = self._levels(rows)
        with enable_x64(True):
            return np.hstack(interpolate(levels, self._target(levels), self.alpha_))

    def _target(self, levels: list[np.ndarray]) -> list[np.ndarray]:
        with enable_x64(True):  # keeps float64
            target = RULES[self.rule].target(levels, self._tree, self.weights)
        return [np.asarray(p) for p in target]

    def _levels(self, X: np.ndarray) -> list[np.ndarray]:
        return np.split(X, np.cumsum(self._tree.sizes)[:-1], axis=1)

    def _cut(self, X: np.ndarray, level: int) -> np.ndarray:
        """Return the columns of the cut at a level, which sum to 1: `[N, K]`."""
        first = np.cumsum((0, *self._tree.sizes))
        of_level, index = self._tree.cut(level).T
        return X[:, first[of_level] + index]

    def _learn_classes(self, y: np.ndarray) -> np.ndarray:
        """Set `classes_`, and their order among the leaves, and return the leaf ids of y."""
        leaves = np.arange(self._tree.num_leaves)
        if y.dtype.kind not in "biuf":
            leaves = np.array(self._tree.leaf_names, dtype=object if y.dtype == object else str)
        self.classes_, self._order = np.unique(leaves, return_index=True)
        if self.decision == "minimum_risk" and y.dtype.kind in "biuf":
            raise ValueError(
                "decision='minimum_risk' may predict a class above the leaves, which has no leaf "
                "id; give leaf names in y"
            )
        if len(self.classes_) < len(leaves):
            raise ValueError("two leaves of the hierarchy have the same name; use leaf ids for y")
        unknown = ~np.isin(y, self.classes_)
        if unknown.any():
            raise ValueError(
                f"y has the class {y[unknown].tolist()[0]!r}, which is no leaf of the hierarchy; "
                f"allowed are leaf ids, 0 to {len(leaves) - 1}, or leaf names, as "
                f"{self._tree.leaf_names[0]!r}"
            )
        return self._order[np.searchsorted(self.classes_, y)]

    def _check_parameters(self) -> float:
        """Return the largest alpha of the rule."""
        if not isinstance(self.hierarchy, Hierarchy):
            raise ValueError(
                f"hierarchy={self.hierarchy!r}: needed is a hiercls_jax.Hierarchy, whose levels "
                "are the classes of the columns of X"
            )
        if self.rule not in RULES:
            raise ValueError(f"rule={self.rule!r}: allowed are {', '.join(map(repr, RULES))}")
        if self.decision not in DECISIONS:
            allowed = ", ".join(map(repr, DECISIONS))
            raise ValueError(f"decision={self.decision!r}: allowed are {allowed}")
        check_weights(self.weights, self._tree.num_levels)
        largest = min(RULES[self.rule].largest_alpha(self.hierarchy, self.weights))
        alpha: object = self.alpha
        tune = isinstance(alpha, str) and alpha == "tune"
        if not (tune or isinstance(alpha, Real) and 0 <= float(alpha) <= largest):
            raise ValueError(
                f"alpha={alpha!r}: allowed are 'tune' and numbers from 0 to {largest:g}"
            )
        return largest

    def _check_probabilities(self, X: np.ndarray) -> None:
        columns = sum(self._tree.sizes)
        if X.shape[1] != columns:
            raise ValueError(
                f"X has n_features={X.shape[1]} columns; the levels of the hierarchy have "
                f"{' + '.join(map(str, self._tree.sizes))} = {columns} classes"
            )
        if X.min() < 0:
            row, column = np.argwhere(X < 0)[0]
            raise ValueError(
                f"Negative values in data: X has {X[row, column]:g} in row {row} (from 0), column "
                f"{column}; allowed are probabilities"
            )
        for level, name in enumerate(self._tree.levels):
            total = self._cut(X, level).sum(axis=1, dtype=np.float64)
            row = np.argmax(np.abs(total - 1))
            if abs(total[row] - 1) > SUM_TOLERANCE:
                above = ", with the leaves above it," if self._tree.ragged else ""
                raise ValueError(
                    f"X: level '{name}'{above} sums to {total[row]:.6g} in row {row} (from 0); "
                    f"allowed is 1 within {SUM_TOLERANCE:g}: divide each level by its sum"
                )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
