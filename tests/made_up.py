"""Made-up predictions that are better than chance, and readers of the data in a page."""

import base64
import json
import re

import numpy as np

from hiercls_jax import Hierarchy
from hiercls_jax.evaluation.predictions import Predictions

DATA = re.compile(r'<script id="data" type="application/json">(.*?)</script>', re.DOTALL)

THREE = Hierarchy(
    ("order", "kind", "animal"),
    (
        ("carnivore", "rodent"),
        ("cat", "dog", "mouse"),
        ("lynx", "lion", "pug", "house", "dormouse"),
    ),
    ((0, 0, 1), (0, 0, 1, 2, 2)),
)


def predictions(hierarchy: Hierarchy, count: int, seed: int = 0) -> Predictions:
    """Return a softmax of noise that prefers the labels a little."""
    rng = np.random.default_rng(seed)
    labels = hierarchy.labels(rng.integers(0, hierarchy.num_leaves, count))
    probs = {}
    for level, size, y in zip(hierarchy.levels, hierarchy.sizes, labels, strict=True):
        scores = rng.standard_normal((count, size), np.float32) * 1.6
        scores[np.arange(count), y] += np.float32(1.2 * np.log(size))
        probs[level] = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return Predictions(probs, dict(zip(hierarchy.levels, labels, strict=True)))


def page_data(text: str) -> dict:
    """Return the data that a page embeds, as the browser reads it."""
    (data,) = DATA.findall(text)
    return json.loads(data)


def unpacked(packed: dict, *shape: int) -> np.ndarray:
    """Return an embedded array."""
    return np.frombuffer(base64.b64decode(packed["bytes"]), f"<{packed['type']}").reshape(shape)


def rates(data: dict) -> np.ndarray:
    """Return error rates `[levels, positions]`, as the browser adds them up."""
    shape = len(data["levels"]), len(data["totals"]), len(data["alphas"])
    return unpacked(data["wrong"], *shape).sum(axis=1) / sum(data["totals"])
