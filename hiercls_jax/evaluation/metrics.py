"""Metrics of predicted probabilities: sums over samples, divided once."""

import numpy as np


def top1_error(probs, labels) -> float:
    """Return the share of samples whose most probable class is not their label.

    Args:
      probs: `[N, classes]`; of equally probable classes the lowest index counts.
      labels: integer `[N]`.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not len(labels):
        raise ValueError(
            f"probs is [N, classes] and labels [N], N > 0; got {list(probs.shape)} and "
            f"{list(labels.shape)}"
        )
    return int(np.sum(probs.argmax(axis=-1) != labels)) / len(labels)


def coherence_gap(p_upper, p_lower, parents) -> float:
    """Return the mean over samples of Σ_i |P_i - Q_i| / 2, the mass on which two levels disagree.

    Args:
      p_upper: `[N, C]` probabilities.
      p_lower: `[N, F]` probabilities.
      parents: integer `[F]` in `[0, C)`.
    """
    q = np.zeros(np.shape(p_upper), np.float64)
    np.add.at(q.T, np.asarray(parents), np.asarray(p_lower, np.float64).T)
    return float(np.abs(np.asarray(p_upper, np.float64) - q).sum(axis=-1).mean() / 2)
