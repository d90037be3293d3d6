"""The constant codebooks: what bundles mean by their names for ever, their symmetries, and that they are exact."""

from hashlib import sha256

import numpy as np
import pytest
import torch

from kquant_cli.codebooks.integer_grids import (
    FILE,
    LEAST_EXPONENT,
    MOST_EXPONENT,
    grid_codebook,
    integer_grids,
    ring_name,
)

CPU = torch.device("cpu")
LEVELS = [*range(2, 25), 32]


def test_names_mean_what_they_meant():
    """Never to be changed: bundles hold the names alone. A new codebook is a new name in a file of its own."""
    assert sha256(FILE.read_bytes()).hexdigest() == "181f436a3ac679eb31e13774b6ac5624683b306fc93a84cfbafc539a8bb6ffc5"


def test_there_is_one_for_each_count_up_to_24_and_for_32():
    assert list(integer_grids()) == [ring_name(levels) for levels in LEVELS]
    for levels in LEVELS:
        points = integer_grids()[ring_name(levels)]
        assert len(set(points)) == levels
        assert all(type(number) is int and abs(number) <= 127 for point in points for number in point)


@pytest.mark.parametrize("levels", LEVELS[::2])
def test_the_second_half_is_the_negative_of_the_first(levels):
    points = np.array(integer_grids()[ring_name(levels)])
    assert np.array_equal(points[levels // 2 :], -points[: levels // 2])


@pytest.mark.parametrize("levels", [4, 8, 16, 32])
def test_mirror_images_are_points_too(levels):
    points = integer_grids()[ring_name(levels)]
    assert {(-u, v) for u, v in points} == {(u, -v) for u, v in points} == {(v, u) for u, v in points} == set(points)


@pytest.mark.parametrize("levels", [4, 8, 16])
def test_numbers_are_odd_so_that_a_complement_of_bits_negates_them(levels):
    """With t = (x - 1) / 2, not t is (-x - 1) / 2."""
    assert all(number % 2 for point in integer_grids()[ring_name(levels)] for number in point)


@pytest.mark.parametrize("levels", LEVELS[1:])
def test_points_are_nearly_evenly_spaced_on_a_circle_and_in_order(levels):
    points = np.array(integer_grids()[ring_name(levels)])
    z = points[:, 0] + 1j * points[:, 1]
    turned = z * np.exp(-2j * np.pi * np.arange(levels) / levels)
    assert np.abs(turned / turned.mean() - 1).max() < 0.012


@pytest.mark.parametrize("exponent", [LEAST_EXPONENT, -6, 0, MOST_EXPONENT])
def test_the_codebook_is_exact(exponent):
    codebook = grid_codebook("ring-16", exponent, CPU)
    expected = np.ldexp(np.array(integer_grids()["ring-16"], dtype=np.float64), exponent - 7)
    assert codebook.dtype == torch.float32
    assert np.array_equal(codebook.double().numpy(), expected)
    assert float(codebook.abs().min()) >= torch.finfo(torch.float32).tiny


def test_all_share_one_tensor_which_autograd_can_keep():
    with torch.inference_mode(), torch.device("meta"):
        made = grid_codebook("ring-9", -3, CPU)
    assert made.device == CPU
    assert not made.is_inference()
    assert grid_codebook("ring-9", -3, CPU) is made
