"""Finished runs with made-up predictions, for tests of comparisons."""

import json
from pathlib import Path

import numpy as np

from hiercls_jax import experiment
from hiercls_jax.evaluation import predictions
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.experiment import run
from hiercls_jax.hierarchy import Hierarchy, cifar100
from hiercls_jax.metrics import child_sums
from hiercls_jax.models.variants import VARIANTS

COSTS = {"training": 60.0, "training_cpu": 60.0, "test_prediction": 2.0, "test_adaptation": 0.1}


def made_up(
    hierarchy: Hierarchy, images: int, seed: int, data: int, skill: float = 3.0
) -> Predictions:
    """Return predictions that are better than chance, with independent noise at each level.

    Args:
      hierarchy: two levels.
      images: how many.
      seed: of the network's noise.
      data: seed of the labels and of the noise of each image, which all networks share.
      skill: how far the label's logit is above the others.
    """
    of_data, of_network = np.random.default_rng(data), np.random.default_rng([data, seed])
    labels = hierarchy.labels(of_data.integers(hierarchy.sizes[-1], size=images))
    hard = of_data.normal(size=(images, hierarchy.sizes[-1]))
    probs = {}
    for level, size, y in zip(hierarchy.levels, hierarchy.sizes, labels, strict=True):
        noise = hard if size == hierarchy.sizes[-1] else 2 * child_sums(hard, hierarchy.parents[-1])
        logits = noise + of_network.normal(size=(images, size)) + skill * np.eye(size)[y]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs[level] = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    return Predictions(
        probs, {v: y.astype(np.int32) for v, y in zip(hierarchy.levels, labels, strict=True)}
    )


def write_run(
    folder: Path, variant: str, seed: int, images: int = 300, validation: int = 200, **costs: float
) -> None:
    """Write those files of a finished run of CIFAR-100 that a comparison reads."""
    hierarchy, config = cifar100(), experiment.compose(variant, f"cpu,seed={seed}")
    network = 10 * list(VARIANTS).index(variant) + seed
    splits = {
        "test": made_up(hierarchy, images, network, data=0),
        "validation": made_up(hierarchy, validation, network, data=1),
    }
    folder.mkdir(parents=True)
    for name in run.OUTPUTS:
        (folder / name).touch()
    run.claim_workdir(folder, config)
    hierarchy.to_json(folder / "hierarchy.json")
    predictions.save(folder / "predictions.npz", splits)
    results = {
        "finished": True,
        "config": experiment.flatten(config),
        "seconds": {**COSTS, "training": 60.0 + seed, **costs},
        "environment": {"devices": "1 x cpu"},
    }
    (folder / "results.json").write_text(json.dumps(results))
