"""GLUE's metrics and the jackknife against formulas written out."""

import math
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from kquant_cli.evaluation.classification.metrics import METRICS, difference_error, measure
from kquant_cli.evaluation.jackknife import means_left_out, standard_error

DRAW = np.random.RandomState(5)
LABELS = DRAW.randint(0, 2, 60)
GUESSES = np.where(DRAW.rand(60) < 0.7, LABELS, 1 - LABELS)
OTHERS = np.where(DRAW.rand(60) < 0.8, GUESSES, 1 - GUESSES)
SCORES = DRAW.rand(40).round(1) * 5  # with ties
OUTPUTS = SCORES + DRAW.randn(40)


def test_counts_of_a_table_give_the_classification_metrics() -> None:
    tp, tn, fp, fn = (int(((y == LABELS) & (p == GUESSES)).sum()) for y, p in ((1, 1), (0, 0), (0, 1), (1, 0)))
    assert measure("accuracy", LABELS, GUESSES) == pytest.approx((tp + tn) / 60)
    assert measure("f1", LABELS, GUESSES) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert measure("matthews", LABELS, GUESSES) == pytest.approx((tp * tn - fp * fn) / below)
    assert measure("f1", LABELS, GUESSES) == sklearn.metrics.f1_score(LABELS, GUESSES)


def test_correlations() -> None:
    x, y = SCORES - SCORES.mean(), OUTPUTS - OUTPUTS.mean()
    assert measure("pearson", SCORES, OUTPUTS) == pytest.approx((x * y).sum() / math.sqrt((x**2).sum() * (y**2).sum()))
    ranks = [1 + sum(b < a for b in SCORES) + (sum(b == a for b in SCORES) - 1) / 2 for a in SCORES]
    expected = np.corrcoef(ranks, scipy.stats.rankdata(OUTPUTS))[0, 1]
    assert measure("spearman", SCORES, OUTPUTS) == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
def test_what_is_undefined_is_quiet() -> None:
    zeros, ones = np.zeros(5), np.ones(5)
    assert measure("matthews", zeros, ones) == 0
    assert measure("f1", zeros, zeros) == 0
    assert measure("accuracy", ones, ones) == 1
    assert math.isnan(measure("pearson", zeros, np.arange(5)))
    assert math.isnan(measure("spearman", np.arange(5), zeros))
    assert math.isnan(measure("pearson", np.ones(1), np.ones(1)))


def one_by_one(metric: str, labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The jackknife by its definition."""
    left = [
        METRICS[metric](labels[keep], ours[keep]) - METRICS[metric](labels[keep], theirs[keep])
        for keep in (list(rest) for rest in combinations(range(len(labels)), len(labels) - 1))
    ]
    n = len(left)
    return math.sqrt((n - 1) / n * sum((value - sum(left) / n) ** 2 for value in left))


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_the_error_of_a_difference_of_predictions(metric: str) -> None:
    expected = one_by_one(metric, LABELS, GUESSES, OTHERS)
    assert difference_error(metric, LABELS, GUESSES, OTHERS) == pytest.approx(expected)
    assert difference_error(metric, LABELS, GUESSES, GUESSES) == 0


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_the_error_of_a_difference_of_correlations(metric: str) -> None:
    others = OUTPUTS + 0.3 * DRAW.randn(40)
    assert difference_error(metric, SCORES, OUTPUTS, others) == pytest.approx(
        one_by_one(metric, SCORES, OUTPUTS, others)
    )


def test_for_a_mean_the_jackknife_is_the_textbooks_standard_error() -> None:
    values = DRAW.randn(31)
    assert standard_error(means_left_out(values)) == pytest.approx(values.std(ddof=1) / math.sqrt(31))
    hits = (GUESSES == LABELS).astype(float) - (OTHERS == LABELS)
    assert difference_error("accuracy", LABELS, GUESSES, OTHERS) == pytest.approx(hits.std(ddof=1) / math.sqrt(60))


def test_weights_and_counts() -> None:
    values, weights = DRAW.randn(6), np.array([1, 2, 3, 1, 5, 2])
    left = means_left_out(values, weights)
    for i in range(6):
        keep = np.arange(6) != i
        assert left[i] == pytest.approx(np.average(values[keep], weights=weights[keep]))
    repeated = np.repeat(values, weights)
    assert standard_error(values, weights) == pytest.approx(standard_error(repeated))


def test_too_few_observations_have_no_error() -> None:
    assert standard_error(means_left_out(np.array([1.0]))) is None
    assert standard_error(np.array([1.0, np.inf])) is None
    assert difference_error("pearson", np.array([1.0, 2.0]), np.array([1.0, 3.0]), np.array([2.0, 5.0])) is None
