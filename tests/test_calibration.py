"""Temperature scaling: its minimum, and the order of logits, which it keeps.

Tolerance: the search stops within 1e-6 of ln T, and float32 logits move the minimum by about
their unit roundoff, 6e-8, over the curvature, which is near 1 here.
"""

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from hiercls_jax.metrics import (
    PROBABILITY_FLOOR,
    expected_calibration_error,
    negative_log_likelihood,
)
from hiercls_jax.metrics.calibration import (
    TEMPERATURES,
    apply_temperature,
    fit_temperature,
    log_probs,
)

FITTED = 5e-6
known = pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 1.7, 30.0])
temperatures = st.floats(*TEMPERATURES)


def calibrated():
    """Probabilities `[12, 3]` and labels `[12]` that occur exactly as often as these say."""
    rows = [((2, 1, 1), 4), ((1, 5, 2), 8)]
    probs = np.concatenate([np.tile(np.divide(row, n), (n, 1)) for row, n in rows])
    return probs, np.concatenate([np.repeat(np.arange(3), row) for row, _ in rows])


def drawn(seed, n=200, k=4):
    """Logits float32 and labels that they predict now and then."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((n, k), np.float32)
    noisy = logits + 4 * rng.gumbel(size=(n, k))
    return logits, noisy.argmax(axis=1)


# What it finds.


@known
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_recovers_a_known_temperature(temperature, dtype):
    """Logits of calibrated probabilities times T are fitted by T, and then calibrated again."""
    probs, labels = calibrated()
    logits = (temperature * np.log(probs)).astype(dtype)
    fitted = fit_temperature(logits, labels)
    assert isinstance(fitted, float)
    assert fitted == pytest.approx(temperature, rel=FITTED)
    scaled = apply_temperature(logits, fitted)
    np.testing.assert_allclose(scaled, probs, atol=FITTED)
    assert expected_calibration_error(scaled, labels) == pytest.approx(0, abs=FITTED)


@pytest.mark.parametrize("seed", range(4))
def test_no_temperature_has_a_smaller_likelihood(seed):
    """The fitted T has the least negative log-likelihood of a fine grid over the whole range."""
    logits, labels = drawn(seed)
    fitted = fit_temperature(logits, labels)
    nll = [
        negative_log_likelihood(apply_temperature(logits, t), labels)
        for t in (fitted, *np.geomspace(*TEMPERATURES, 400))
    ]
    assert nll[0] <= min(nll[1:]) + 1e-12


def test_fitting_twice_changes_nothing():
    """After scaling by the fitted T the best further temperature is 1."""
    logits, labels = drawn(0)
    scaled = log_probs(apply_temperature(logits, fit_temperature(logits, labels)))
    assert fit_temperature(scaled, labels) == pytest.approx(1, rel=FITTED)


def test_shifts_and_scales_of_logits():
    """A constant added to a sample's logits changes nothing; a factor multiplies T."""
    logits, labels = drawn(1)
    fitted = fit_temperature(logits, labels)
    shifted = logits + np.arange(len(logits), dtype=np.float32)[:, None] / 16
    assert fit_temperature(shifted, labels) == pytest.approx(fitted, rel=1e-4)  # 12.5 rounds 1e-6
    assert fit_temperature(4 * logits, labels) == pytest.approx(4 * fitted, rel=FITTED)


def test_ends_of_the_range():
    """All right: as sharp as allowed. Worse than chance: as flat as allowed. Constant: 1."""
    logits = np.float32([[0.1, 0], [0, 0.1]])
    assert fit_temperature(logits, [0, 1]) == TEMPERATURES[0]
    assert fit_temperature(logits, [1, 0]) == TEMPERATURES[1]
    assert fit_temperature(np.full((2, 3), 5.3), [1, 0]) == 1


# What it leaves alone.


@given(
    logits=hnp.arrays(np.float32, (20, 5), elements=st.floats(-50, 50, width=32)),
    temperature=temperatures,
)
def test_the_most_probable_class_stays(logits, temperature):
    """Scaling changes no argmax, of logits that differ in float32 or are tied, nor the order."""
    logits = np.where(np.abs(logits) < 1e-6, 0, logits)  # what differs, differs by 1e-13
    scaled = apply_temperature(logits, temperature)
    np.testing.assert_array_equal(scaled.argmax(axis=1), logits.argmax(axis=1))
    pairs = logits[:, :, None] > logits[:, None, :]
    assert (scaled[:, :, None] >= scaled[:, None, :])[pairs].all()
    np.testing.assert_allclose(scaled.sum(axis=1), 1, atol=1e-12)


def test_temperature_1_of_log_probabilities_is_the_identity():
    """softmax(log p) = p to float32; 0 comes back as the floor, and leading axes stay."""
    probs = np.random.default_rng(0).dirichlet(np.ones(6), (2, 3)).astype(np.float32)
    probs[0, 0] = [0, 0, 0.5, 0.25, 0.25, 0]
    logits = log_probs(probs)
    assert logits.dtype == np.float32
    assert logits[0, 0, 0] == pytest.approx(math.log(PROBABILITY_FLOOR), rel=1e-6)
    # ln p of at most 87 is rounded to 4e-6, and that is p's relative error.
    np.testing.assert_allclose(apply_temperature(logits, 1.0), probs, rtol=4e-6, atol=1e-37)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_temperature(np.log([[1.0, 2.0]]), [2]), "label 2 is out of range"),
        (lambda: fit_temperature([[0.0, -np.inf]], [0]), "finite; .*log_probs"),
        (lambda: fit_temperature([0.0, 1.0], [0]), r"got \[2\] and \[1\]"),
        (lambda: apply_temperature([0.0, 1.0], 0), "a temperature is positive, got 0"),
        (lambda: apply_temperature([0.0, 1.0], float("nan")), "positive, got nan"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    """A ValueError says what is allowed."""
    with pytest.raises(ValueError, match=message):
        call()
