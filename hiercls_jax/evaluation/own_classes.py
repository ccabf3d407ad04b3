"""Other classes than in training: which leaves are kept, and how frequent they are."""

import dataclasses
from typing import Any

import numpy as np

from hiercls_jax.adaptation.priors import estimate_prior, leaf_mask, weights_of
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation.outcomes import SCORE_BYTES, draw
from hiercls_jax.tables.columns import read_names
from hiercls_jax.tables.frequencies import read_frequencies
from hiercls_jax.tables.levels import LevelTables
from hiercls_jax.tables.streaming import sample_levels

SEED = 0  # of the rows that frequencies are estimated on
ESTIMATE = "estimate"


@dataclasses.dataclass(frozen=True)
class OwnClasses:
    """What a user says about the classes; None says nothing.

    Args:
      only: a file of the classes that are kept, of any level, one a line.
      prior: a file of the leaves' frequencies now, or `estimate`.
      train_prior: a file of the leaves' frequencies in training; None if they were equal.
    """

    only: str | None = None
    prior: str | None = None
    train_prior: str | None = None


def apply(tables: LevelTables, own: OwnClasses, chunk: int) -> tuple[LevelTables, dict[str, Any]]:
    """Return the tables with every leaf weighed, and what was done, in JSON's types.

    Args:
      tables: N samples.
      own: which classes are kept, and how frequent they are.
      chunk: number of rows to read at a time.

    Raises:
      UserError: for files that do not fit the hierarchy's leaves.
    """
    leaves = tables.hierarchy.leaf_names
    kept = np.ones(len(leaves), bool)
    record: dict[str, Any] = {}
    if own.only is not None:
        kept = leaf_mask(tables.hierarchy, read_names(own.only))
        record["only"] = {"file": own.only, "leaves": int(kept.sum()), "of": len(leaves)}
        tables = dataclasses.replace(tables, weights=kept.astype(np.float64))
    old = np.full(len(leaves), 1 / len(leaves))
    if own.train_prior is not None:
        if own.prior is None:
            raise UserError(
                f"--train_prior={own.train_prior} needs the frequencies now: give --prior=FILE, or "
                "--prior=estimate"
            )
        old = read_frequencies(own.train_prior, leaves)
    if own.prior is None:
        return tables, record
    # What remains of the training frequencies if only some classes are kept.
    old = old * kept
    if not old.any():
        raise UserError(f"--only={own.only} keeps no class that has a frequency in training")
    old = old / old.sum()
    about: dict[str, Any] = {"train_prior": own.train_prior or "equal frequencies"}
    if own.prior == ESTIMATE:
        rows = draw(
            np.arange(tables.rows),
            max(1, SCORE_BYTES // (8 * len(leaves))),
            np.random.default_rng(SEED),
        )
        new = estimate_prior(sample_levels(tables, chunk, rows)[-1], old)
        about |= {"estimated_on_rows": len(rows)}
    else:
        new = read_frequencies(own.prior, leaves)
        about |= {"file": own.prior}
    try:
        weights = weights_of(tables.hierarchy, old, np.where(kept, new, 0))
    except ValueError as error:
        raise UserError(f"--prior={own.prior}: {error}") from error
    about["new_prior"] = {
        name: float(f"{value:.6g}") for name, value in zip(leaves, new, strict=True)
    }
    return dataclasses.replace(tables, weights=weights), {**record, "prior": about}
