"""Adaptation as a scikit-learn estimator. Needs scikit-learn: pip install "hiercls_jax[sklearn]".

`examples/digits_svm.py` adapts two support vector machines with it.
"""

from numbers import Real

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from hiercls_jax.adaptation.alpha import alpha_search
from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.tree import SUM_TOLERANCE, check_weights, interpolate
from hiercls_jax.hierarchy import Hierarchy

FLOATS = (np.float64, np.float32)  # other dtypes become the first


class HierarchyAdjuster(OneToOneFeatureMixin, ClassifierMixin, TransformerMixin, BaseEstimator):
    """Adapt the probabilities that any classifiers gave the levels of a hierarchy to each other.

    `fit` chooses alpha, `transform` returns the adapted probabilities of all levels, and `predict`
    and `predict_proba` those of the leaves: the classes of the last level and, in a ragged
    hierarchy, the leaves above it.

    X is float `[N, Σ N_l]`, the levels' probabilities side by side, coarsest level first, as
    `np.hstack` puts them: non-negative, each level's summing to 1 within 0.001, in a ragged
    hierarchy together with the leaves above the level (`hiercls_jax.adaptation.tree.marginals`
    brings softmaxes into that form). Adaptation computes in the dtype of X, float32 or float64.
    y, `[N]`, has the samples' leaves: numbers are leaf ids, text is leaf names.

    Fit it to rows that the classifiers were not trained on: on their training rows they are surer
    than they should be, and alpha comes out wrong.

    Args:
      hierarchy: a `Hierarchy`, which `fit` cannot do without.
      rule: the target of adaptation, a key of `hiercls_jax.adaptation.rules.RULES`; 'kl' is
        Algorithm 1.
      weights: L non-negative numbers, how much each level counts in the target, for rules that
        weigh levels ('kl', 'geometric_pooling'); None for equal ones.
      alpha: 'tune', or a number from 0 (no adaptation) over 1 (the levels agree) to the rule's
        largest, 2 for 'kl' on two equal levels; y then only says whether classes are ids or names.
      objective: what tuning minimises: 'sum' of the levels' top-1 errors, the number of the level
        whose error counts, or 'nll'; as in `alpha_search`.

    Attributes:
      alpha_: the alpha in use.
      search_: the `AlphaSearch` by which it was tuned, with all minimisers and the error curves;
        None where it was given.
      classes_: `[num_leaves]`, sorted, the columns of `predict_proba`: leaf ids or leaf names, as
        in y, including those that y lacks.
      n_features_in_, feature_names_in_: as in scikit-learn.

    Raises:
      ValueError: from `fit`, for parameters that are not allowed and for y that holds no leaves;
        from all methods, for rows of X that hold no probabilities.

    Source: Dutt, Pellerin and Quénot (CBMI 2017), Sections 3.2 and 3.3.

    >>> animals = ("cat", "dog"), ("lynx", "lion", "pug")
    >>> pets = Hierarchy(("kind", "animal"), animals, ((0, 0, 1),))
    >>> X = np.hstack([[[0.75, 0.25], [0.5, 0.5]], [[0.375, 0.125, 0.5], [0, 0.25, 0.75]]])
    >>> adjuster = HierarchyAdjuster(pets).fit(X, ["lynx", "pug"])
    >>> adjuster.predict(X).tolist(), adjuster.classes_.tolist()
    (['lynx', 'pug'], ['lion', 'lynx', 'pug'])
    >>> adjuster.set_params(alpha=1.0).fit(X, ["lynx", "pug"]).transform(X)[0].tolist()
    [0.625, 0.375, 0.46875, 0.15625, 0.375]
    """

    def __init__(self, hierarchy=None, *, rule="kl", weights=None, alpha="tune", objective="sum"):
        self.hierarchy = hierarchy
        self.rule = rule
        self.weights = weights
        self.alpha = alpha
        self.objective = objective

    def fit(self, X, y):
        """Choose alpha on X `[N, Σ N_l]` and y `[N]`, and return the estimator."""
        X, y = validate_data(self, X, y, dtype=FLOATS)
        check_classification_targets(y)
        largest = self._check_parameters()
        self._check_probabilities(X)
        leaf_ids = self._learn_classes(y)
        target = np.hstack(self._target(self._levels(X)))  # in any case: the rule's own checks
        self.search_ = None
        if self.alpha == "tune":
            cuts = range(self.hierarchy.num_levels)
            self.search_ = alpha_search(
                [self._cut(X, level) for level in cuts],
                [self._cut(target, level) for level in cuts],
                self.hierarchy.labels(leaf_ids),
                largest=largest,
                objective=self.objective,
            )
        self.alpha_ = self.search_.alpha if self.search_ else float(self.alpha)
        return self

    def transform(self, X):
        """Return the adapted probabilities of all levels, as X has them: `[N, Σ N_l]`."""
        return self._adapt(X)

    def predict_proba(self, X):
        """Return the adapted probabilities of the leaves, `[N, num_leaves]`, as in `classes_`."""
        return self._cut(self._adapt(X), -1)[:, self._order]

    def predict(self, X):
        """Return the most probable leaf of each row, `[N]`."""
        most_probable = np.argmax(self.predict_proba(X), axis=1)
        return self.classes_[most_probable]

    def _adapt(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, dtype=FLOATS, reset=False)
        self._check_probabilities(X)
        levels = self._levels(X)
        with enable_x64(True):
            return np.hstack(interpolate(levels, self._target(levels), self.alpha_))

    def _target(self, levels) -> tuple[np.ndarray, ...]:
        with enable_x64(True):  # or float64 would become float32
            return RULES[self.rule].target(levels, self.hierarchy, self.weights)

    def _levels(self, X) -> list[np.ndarray]:
        return np.split(X, np.cumsum(self.hierarchy.sizes)[:-1], axis=1)

    def _cut(self, X, level: int) -> np.ndarray:
        """Return the columns of the cut at a level, which sum to 1: `[N, K]`."""
        first = np.cumsum((0, *self.hierarchy.sizes))
        of_level, index = self.hierarchy.cut(level).T
        return X[:, first[of_level] + index]

    def _learn_classes(self, y) -> np.ndarray:
        """Set `classes_`, and their order among the leaves, and return the leaf ids of y."""
        leaves = np.arange(self.hierarchy.num_leaves)
        if y.dtype.kind not in "biuf":
            leaves = np.array(self.hierarchy.leaf_names, dtype=object if y.dtype == object else str)
        self.classes_, self._order = np.unique(leaves, return_index=True)
        if len(self.classes_) < len(leaves):
            raise ValueError("two leaves of the hierarchy have the same name; use leaf ids for y")
        unknown = ~np.isin(y, self.classes_)
        if unknown.any():
            raise ValueError(
                f"y has the class {y[unknown].tolist()[0]!r}, which is no leaf of the hierarchy; "
                f"allowed are leaf ids, 0 to {len(leaves) - 1}, or leaf names, as "
                f"{self.hierarchy.leaf_names[0]!r}"
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
        check_weights(self.weights, self.hierarchy.num_levels)
        largest = min(RULES[self.rule].largest_alpha(self.hierarchy, self.weights))
        tune = isinstance(self.alpha, str) and self.alpha == "tune"
        if not (tune or isinstance(self.alpha, Real) and 0 <= self.alpha <= largest):
            raise ValueError(
                f"alpha={self.alpha!r}: allowed are 'tune' and numbers from 0 to {largest:g}"
            )
        return largest

    def _check_probabilities(self, X) -> None:
        columns = sum(self.hierarchy.sizes)
        if X.shape[1] != columns:
            raise ValueError(
                f"X has n_features={X.shape[1]} columns; the levels of the hierarchy have "
                f"{' + '.join(map(str, self.hierarchy.sizes))} = {columns} classes"
            )
        if X.min() < 0:
            row, column = np.argwhere(X < 0)[0]
            raise ValueError(
                f"Negative values in data: X has {X[row, column]:g} in row {row} (from 0), column "
                f"{column}; allowed are probabilities"
            )
        for level, name in enumerate(self.hierarchy.levels):
            total = self._cut(X, level).sum(axis=1, dtype=np.float64)
            row = np.argmax(np.abs(total - 1))
            if abs(total[row] - 1) > SUM_TOLERANCE:
                above = ", with the leaves above it," if self.hierarchy.ragged else ""
                raise ValueError(
                    f"X: level '{name}'{above} sums to {total[row]:.6g} in row {row} (from 0); "
                    f"allowed is 1 within {SUM_TOLERANCE:g}: divide each level by its sum"
                )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
