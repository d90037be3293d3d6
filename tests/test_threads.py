"""Loops over blocks in several threads: the same results as in one."""

import threading
from collections.abc import Iterator

import pytest
import torch

from kquant_cli.codebooks import grid_start, kmeans, nearest
from kquant_cli.encoders.scale import root_mean_square
from kquant_cli.threads import alone, for_each

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def test_results_come_in_the_order_of_the_blocks() -> None:
    names = set()

    def work(a: int, b: int) -> int:
        names.add(threading.current_thread().name)
        assert torch.get_num_threads() == 1
        return a * b

    assert for_each(work, range(50), range(50), device=CPU) == [n * n for n in range(50)]
    assert threading.current_thread().name not in names
    assert torch.get_num_threads() == 3


def test_an_error_in_a_block_reaches_the_caller() -> None:
    def work(n: int) -> float:
        return 1 / (n - 7)

    with pytest.raises(ZeroDivisionError):
        for_each(work, range(20), device=CPU)
    with pytest.raises(ValueError, match="shorter"):
        for_each(work, range(3), range(2), device=CPU)


@pytest.mark.parametrize("inference", [True, False])
def test_blocks_can_be_written_in_inference_mode(inference: bool) -> None:
    with torch.inference_mode(inference):
        x = torch.zeros(100)
        for_each(lambda block: block.add_(1), x.split(10), device=CPU)
    assert x.tolist() == [1.0] * 100


def test_clustering_gives_the_same_bits_with_any_number_of_threads() -> None:
    points = torch.randn(700_000, 2, generator=torch.Generator().manual_seed(0))  # several stretches
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        result = kmeans(points, grid_start(points, 16), max_iter=4)
        results.append((result.centroids, result.inertia, nearest(points, result.centroids)))
    for centroids, inertia, codes in results[1:]:
        assert torch.equal(centroids, results[0][0])
        assert inertia == results[0][1]
        assert torch.equal(codes, results[0][2])


@pytest.mark.parametrize("size", [70_000, 131_072])
def test_a_single_block_is_computed_as_in_one_thread(size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    points = [torch.randn(size, 2, generator=draw) for _ in range(4)]
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found = [kmeans(one, grid_start(one, 8), max_iter=3) for one in points]
        results.append([(result.centroids.tolist(), result.inertia) for result in found])
    assert results[1] == results[2] == results[0]


def test_alone_is_in_one_thread_and_in_the_callers_mode() -> None:
    def work(x: torch.Tensor) -> tuple[int, bool, torch.Tensor]:
        return torch.get_num_threads(), torch.is_inference_mode_enabled(), x + 1

    for inference in (True, False):
        with torch.inference_mode(inference):
            assert alone(work, torch.zeros(1), device=CPU) == (1, inference, torch.ones(1))
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    assert alone(work, torch.zeros(1), device=CPU)[0] == 1


@pytest.mark.parametrize("by_row", [True, False])
def test_the_size_of_a_weight_is_the_same_with_any_number_of_threads(by_row: bool) -> None:
    weights = [torch.randn(1024, 257, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    sizes = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        sizes.append(torch.cat([root_mean_square(weight, by_row=by_row) for weight in weights]))
    assert all(torch.equal(size, sizes[0]) for size in sizes)
