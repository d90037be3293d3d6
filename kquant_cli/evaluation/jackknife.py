"""Standard errors of what is computed from many windows or examples: the jackknife.

With t_i the estimate from all but observation i of n, and t their mean (Efron and Stein, Annals of Statistics 9, 1981),

    standard error = sqrt((n - 1) / n * sum_i (t_i - t)^2)

For a mean this is the textbook standard error exactly; for exp(mean loss), F1 or a correlation it is as easily had. A
difference of two models on the same observations leaves out the same one for both, which makes it a paired error.
"""

import math

import numpy as np


def standard_error(left_out: np.ndarray, counts: np.ndarray | None = None) -> float | None:
    """The jackknife's standard error from estimates `left_out` (k,), the i-th standing for `counts[i]` observations.

    None where there are fewer than two observations, or an estimate is no finite number.
    """
    counts = np.ones(len(left_out)) if counts is None else np.asarray(counts, dtype=float)
    n = counts.sum()
    if n < 2 or not np.isfinite(left_out).all():
        return None
    deviations = left_out - np.average(left_out, weights=counts)
    return math.sqrt((n - 1) / n * float((counts * deviations**2).sum()))


def means_left_out(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The weighted mean (n,) of `values` (n,) with each one in turn left out; nan for a single one."""
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((weights * values).sum() - weights * values) / (weights.sum() - weights)
