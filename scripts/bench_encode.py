"""How fast are decomposition and clustering, against plain numpy, scipy and scikit-learn in the same run?

    python scripts/bench_encode.py [--sizes 768x768,2048x8192] [--iterations 10] [--repeats 3] [--json FILE]

Decomposition: the same float32 matrix, bases and number of steps; the plain version is the paper's algorithm as printed
(1 transform for a step into u, 2 for one into v), with scipy.fft on as many workers as torch has threads for dct, and
matrix products for the other bases. Clustering: the pairs (u, v) of that matrix in 16 clusters, from the same k-means++
start; the plain version is scikit-learn's KMeans (lloyd, n_init=1). Both versions take turns, the best time of each
counts, and their errors must agree.
"""

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import scipy.fft
import sklearn
import torch
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans

from kquant_cli.bases import Basis, make_basis
from kquant_cli.codebooks import kmeans, kmeans_plus_plus, nearest
from kquant_cli.decomposition import decompose_matrix
from kquant_cli.decomposition.elementwise import measure, take_step
from kquant_cli.decomposition.residual import CarriedResidual

KINDS = ("dct", "hadamard", "butterfly", "qr")
CLUSTERS = 16
Transform = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="768x768,768x3072,2048x8192", help="rows x columns, separated by commas")
    parser.add_argument("--kinds", default=",".join(KINDS), help="bases, separated by commas")
    parser.add_argument("--iterations", type=int, default=8, help="steps of the decomposition")
    parser.add_argument("--lloyd", type=int, default=50, help="iterations of k-means, at most")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each version, of which the best counts")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()

    console = Console()
    results: dict[str, Any] = {"machine": machine(), "decomposition": [], "iteration": [], "clustering": []}
    console.print(", ".join(f"{name} {value}" for name, value in results["machine"].items()), highlight=False)
    for size in options.sizes.split(","):
        rows, columns = (int(number) for number in size.lower().split("x"))
        weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
        for kind in options.kinds.split(","):
            console.print(f"{size} {kind} ...", style="dim")
            results["decomposition"].append(bench_decomposition(weight, kind, options))
            results["iteration"].append(bench_passes(weight, kind, options))
        console.print(f"{size} clustering ...", style="dim")
        results["clustering"].append(bench_clustering(weight, options))
    console.print("Decomposition and clustering", comparison(results["decomposition"] + results["clustering"]))
    console.print("One iteration of the decomposition", passes(results["iteration"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What the times were taken on."""
    cpu = next(
        (line.split(":")[1].strip() for line in cpuinfo().splitlines() if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "copy_gb_per_s": round(copy_bandwidth(), 1),
    }


def cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def copy_bandwidth() -> float:
    """Bytes read and written a second, in 1e9, by a plain copy of 64 MiB."""
    source = torch.ones(2**24)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / best_of(10, lambda: target.copy_(source)) / 1e9


def best_of(repeats: int, run: Callable[[], Any]) -> float:
    """The least seconds of `repeats` runs."""
    return min(timed(run)[0] for _ in range(repeats))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def duel(repeats: int, plain: Callable[[], Any], ours: Callable[[], Any]) -> tuple[float, Any, float, Any]:
    """The best times and the last results of two versions that take turns; ours first, once, to make its tables."""
    ours()
    plain_times, ours_times = [], []
    for _ in range(repeats):
        seconds, plain_result = timed(plain)
        plain_times.append(seconds)
        seconds, ours_result = timed(ours)
        ours_times.append(seconds)
    return min(plain_times), plain_result, min(ours_times), ours_result


def plain_transforms(kind: str, left: Basis, right: Basis) -> tuple[Transform, Transform]:
    """R -> Q1^T R Q2 and S -> Q1 S Q2^T with scipy and numpy."""
    if kind == "dct":
        workers = torch.get_num_threads()
        return (
            lambda x: scipy.fft.dctn(x, norm="ortho", workers=workers),
            lambda x: scipy.fft.idctn(x, norm="ortho", workers=workers),
        )
    q1, q2 = left.dense(torch.float32).numpy(), right.dense(torch.float32).numpy()
    return lambda x: q1.T @ x @ q2, lambda x: q1 @ x @ q2.T


def plain_decomposition(weight: np.ndarray, forward: Transform, back: Transform, iterations: int) -> list[float]:
    """The relative residuals after each step of the paper's algorithm."""
    residual, u, v = weight.copy(), np.zeros_like(weight), np.zeros_like(weight)
    trace = []
    for _ in range(iterations):
        turned = forward(residual)
        if np.abs(residual).sum() > np.abs(turned).sum():
            signs = np.sign(residual)
            step = (residual * signs).sum() / (signs * signs).sum() * signs
            u += step
            residual -= step
        else:
            signs = np.sign(turned)
            step = (turned * signs).sum() / (signs * signs).sum() * signs
            v += step
            residual -= back(step)
        trace.append(float(np.linalg.norm(residual) / np.linalg.norm(weight)))
    return trace


def bench_decomposition(weight: torch.Tensor, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    left, right = make_basis(kind, weight.shape[0]), make_basis(kind, weight.shape[1], seed=1)
    forward, back = plain_transforms(kind, left, right)
    plain, plain_residuals, ours, factors = duel(
        options.repeats,
        lambda: plain_decomposition(weight.numpy(), forward, back, options.iterations),
        lambda: decompose_matrix(weight, left, right, max_iter=options.iterations, tol=0),
    )
    np.testing.assert_allclose(factors.residuals.numpy(), plain_residuals, rtol=5e-3)  # float32
    name = {"size": size_of(weight), "what": kind, "iterations": options.iterations}
    return {**name, "error": float(factors.residuals[-1]), **speeds(weight.numel(), plain, ours)}


def bench_clustering(weight: torch.Tensor, options: argparse.Namespace) -> dict[str, Any]:
    left, right = make_basis("dct", weight.shape[0]), make_basis("dct", weight.shape[1])
    factors = decompose_matrix(weight, left, right, max_iter=30, tol=1e-6)
    points = torch.stack([factors.u.flatten(), factors.v.flatten()], dim=1)
    points /= points.square().mean().sqrt()
    start = kmeans_plus_plus(points, CLUSTERS, seed=0)

    def scikit(iterations: int) -> KMeans:
        means = KMeans(CLUSTERS, init=start.numpy(), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")
        return means.fit(points.numpy())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        # the rounding of scikit-learn's float32 sums moves the iteration in which nothing moves any more
        common = min(kmeans(points, start, max_iter=options.lloyd, tol=0).iterations, scikit(options.lloyd).n_iter_)
        plain, fitted, ours, result = duel(
            options.repeats, lambda: scikit(common), lambda: kmeans(points, start, max_iter=common, tol=0)
        )
    assert result.iterations == fitted.n_iter_ == common
    error, plain_error = (
        mean_squared_error(points, centroids)
        for centroids in (result.centroids, torch.from_numpy(fitted.cluster_centers_))
    )
    assert abs(error / plain_error - 1) < 1e-3, (error, plain_error)
    name = {"size": size_of(weight), "what": f"{CLUSTERS} clusters", "iterations": result.iterations}
    return {**name, "error": error, **speeds(weight.numel(), plain, ours)}


def mean_squared_error(points: torch.Tensor, centroids: torch.Tensor) -> float:
    """The mean squared distance of points to their nearest centroid, in float64."""
    codes = nearest(points, centroids).long()
    parts = zip(points.split(2**20), codes.split(2**20), strict=True)
    return sum(float((part.double() - centroids[code]).square().sum()) for part, code in parts) / len(points)


def bench_passes(weight: torch.Tensor, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Where the time of one iteration goes, and the bytes a second of its elementwise passes."""
    left, right = make_basis(kind, weight.shape[0]), make_basis(kind, weight.shape[1], seed=1)
    state, c = CarriedResidual(weight, left, right), torch.zeros(())
    repeats = 3 * options.repeats
    transform = best_of(repeats, lambda: state.transform(state.r, state.y, back=False))
    into_u = best_of(repeats, lambda: take_step(c, state.r))
    into_v = best_of(repeats, lambda: take_step(c, state.y, state.v))
    elementwise = (into_u + into_v) / 2 + best_of(repeats, lambda: measure(state.r))
    moved = (
        ((2 + 4) / 2 + 1) * weight.numel() * weight.element_size()
    )  # r; or y and v, read and written; the other read
    return {
        "size": size_of(weight),
        "what": kind,
        "transform_ms": 1e3 * transform,
        "elementwise_ms": 1e3 * elementwise,
        "transform_share": transform / (transform + elementwise),
        "elementwise_gb_per_s": moved / elementwise / 1e9,
    }


def size_of(weight: torch.Tensor) -> str:
    return f"{weight.shape[0]}x{weight.shape[1]}"


def speeds(weights: int, plain: float, ours: float) -> dict[str, float]:
    return {
        "plain_seconds": plain,
        "seconds": ours,
        "plain_weights_per_s": weights / plain,
        "weights_per_s": weights / ours,
        "ratio": plain / ours,
    }


def comparison(results: list[dict[str, Any]]) -> Table:
    table = Table("size", "what", "iterations", "error", "plain [s]", "kquant [s]", "Mweights/s", "times as fast")
    for row in results:
        table.add_row(
            row["size"],
            row["what"],
            str(row["iterations"]),
            f"{row['error']:.4g}",
            f"{row['plain_seconds']:.3f}",
            f"{row['seconds']:.3f}",
            f"{row['weights_per_s'] / 1e6:.1f}",
            f"{row['ratio']:.1f}",
        )
    return table


def passes(results: list[dict[str, Any]]) -> Table:
    table = Table("size", "basis", "transform [ms]", "other passes [ms]", "transform's share", "other passes [GB/s]")
    for row in results:
        table.add_row(
            row["size"],
            row["what"],
            f"{row['transform_ms']:.2f}",
            f"{row['elementwise_ms']:.2f}",
            f"{row['transform_share']:.0%}",
            f"{row['elementwise_gb_per_s']:.1f}",
        )
    return table


if __name__ == "__main__":
    main()
