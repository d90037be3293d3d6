"""GLUE's metrics, by scikit-learn and scipy, and the paired standard error of their difference between two models."""

import warnings
from collections.abc import Callable
from typing import Final

import numpy as np

from kquant_cli.evaluation.jackknife import standard_error

Metric = Callable[[np.ndarray, np.ndarray], float]  # labels (n,), predictions (n,)


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews correlation, 0 where every prediction, or every label, is the same."""
    from sklearn.metrics import matthews_corrcoef  # noqa: PLC0415 (a second to import)

    return float(matthews_corrcoef(labels, predictions))


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of predictions that are right."""
    from sklearn.metrics import accuracy_score  # noqa: PLC0415

    return float(accuracy_score(labels, predictions))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of label 1; 0 where nothing is, or is predicted to be, of it."""
    from sklearn.metrics import f1_score  # noqa: PLC0415

    return float(f1_score(labels, predictions, zero_division=0))


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson correlation; nan where one side is constant or a single number."""
    from scipy.stats import pearsonr  # noqa: PLC0415

    return float(pearsonr(labels, predictions).statistic) if len(labels) > 1 else np.nan


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Spearman rank correlation; nan where one side is constant or a single number."""
    from scipy.stats import spearmanr  # noqa: PLC0415

    return float(spearmanr(labels, predictions).statistic) if len(labels) > 1 else np.nan


METRICS: Final[dict[str, Metric]] = {
    "matthews": matthews,
    "accuracy": accuracy,
    "f1": f1,
    "pearson": pearson,
    "spearman": spearman,
}


def measure(name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    """The metric `name`; what is undefined is nan, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return METRICS[name](labels, predictions)


def difference_error(name: str, labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """The paired standard error of metric(ours) - metric(theirs): jackknife over the examples, all arrays (n,).

    Examples with the same label and predictions need computing once: at most 27 for three labels.
    """
    rows, counts = np.unique(np.stack([labels, ours, theirs], axis=1), axis=0, return_counts=True)
    left_out = []
    for row in range(len(rows)):
        label, our, their = np.repeat(rows, counts - (np.arange(len(rows)) == row), axis=0).T
        left_out.append(measure(name, label, our) - measure(name, label, their))
    return standard_error(np.array(left_out), counts)
