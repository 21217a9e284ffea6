import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from mlops.errors import MlopsError
from mlops.evaluation.calibration import (
    HIGHEST,
    LOWEST,
    calibration_error,
    fit_temperature,
    negative_log_likelihood,
    probabilities,
    reliability,
    temperature_of,
)


def drawn(
    temperature: float, count: int = 20_000, classes: int = 5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels that come true as often as softmax of the logits by `temperature` says."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(dim=1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_the_temperature_that_the_labels_were_drawn_with_is_found(truth: float):
    logits, labels = drawn(truth)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(truth, rel=0.03)
    assert calibration_error(probabilities(logits, found), labels) < 0.012


def test_the_temperature_is_where_scipy_finds_the_least_log_loss():
    logits, labels = drawn(2.0, count=3000)
    best = minimize_scalar(
        lambda t: log_loss(labels, probabilities(logits, t).numpy()), bounds=(0.5, 5), method="bounded"
    )
    assert fit_temperature(logits, labels) == pytest.approx(best.x, rel=2e-3)


def test_the_same_logits_give_the_same_temperature_bit_for_bit():
    logits, labels = drawn(2.0, count=500)
    assert fit_temperature(logits, labels) == fit_temperature(logits.clone(), labels.clone())


@pytest.mark.parametrize("seed", range(20))
def test_a_fitted_temperature_never_makes_the_log_likelihood_worse(seed: int):
    logits, labels = drawn(1.0 + 0.02 * seed, count=30, seed=seed)
    found = fit_temperature(logits, labels)
    assert negative_log_likelihood(logits, labels, found) <= negative_log_likelihood(logits, labels)


def test_a_network_without_a_mistake_is_not_fitted_to_be_certain():
    labels = torch.arange(50) % 5
    logits = 4 * torch.nn.functional.one_hot(labels, 5).float()
    found = fit_temperature(logits, labels)
    assert LOWEST < found < 1
    # By the rule of succession one of 52 may be wrong, and four of five classes are.
    assert float(probabilities(logits, found).max(dim=1).values.mean()) == pytest.approx(1 - 4 / 5 / 52, abs=1e-6)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (1e6 * torch.eye(3), HIGHEST),  # sure and always wrong
        (torch.zeros(3, 3), 1.0),  # says nothing: no temperature changes that
        (torch.full((3, 3), math.nan), 1.0),
    ],
    ids=["sure and wrong", "all alike", "not a number"],
)
def test_the_temperature_is_bounded_and_one_where_none_is_better(logits: torch.Tensor, expected: float):
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(expected)


def test_a_temperature_changes_how_sure_but_never_what_is_said():
    logits, _ = drawn(1.0, count=100)
    cold, hot = probabilities(logits, 0.5), probabilities(logits, 4.0)
    assert torch.equal(cold.argmax(dim=1), hot.argmax(dim=1))
    assert (cold.max(dim=1).values > hot.max(dim=1).values).all()


def test_the_calibration_error_by_hand():
    # Two images at 0.9, one of them right; two at 0.6, both right: (2 * 0.4 + 2 * 0.4) / 4.
    chances = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], dtype=torch.float64)
    assert calibration_error(chances, torch.tensor([0, 1, 0, 1])) == pytest.approx(0.4)


def test_certainty_shares_the_last_bin_with_what_is_nearly_certain():
    # One at 1.0 is wrong, three at 0.95 are right: one bin of mean 0.9625, of which 0.75 are right.
    chances = torch.tensor([[1.0, 0.0]] + [[0.95, 0.05]] * 3, dtype=torch.float64)
    assert calibration_error(chances, torch.tensor([1, 0, 0, 0])) == pytest.approx(0.2125)


def test_the_bins_of_the_diagram_add_up_to_the_calibration_error():
    logits, labels = drawn(2.5, count=777)
    chances = probabilities(logits)
    bins = reliability(chances, labels)
    assert sum(row["n"] for row in bins) == 777
    assert all(row["bin"] / 15 <= row["confidence"] <= (row["bin"] + 1) / 15 for row in bins)
    total = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / 777
    assert total == pytest.approx(calibration_error(chances, labels), abs=1e-6)
    confidence = chances.max(dim=1).values.numpy()
    right = (chances.argmax(dim=1) == labels).numpy()
    last = confidence >= 14 / 15
    assert bins[-1]["accuracy"] == pytest.approx(right[last].mean())
    assert bins[-1]["n"] == np.count_nonzero(last)


def test_a_checkpoint_of_an_unfinished_run_has_the_temperature_one():
    assert temperature_of({"temperature": None}) == temperature_of({}) == 1.0
    assert temperature_of({"temperature": 2}) == 2.0


@pytest.mark.parametrize("bad", [0, -1.0, math.inf, math.nan, "2", True, [1]])
def test_a_temperature_that_is_no_number_above_zero_is_refused(bad: object):
    with pytest.raises(MlopsError, match="must be a number above 0"):
        temperature_of({"temperature": bad})
