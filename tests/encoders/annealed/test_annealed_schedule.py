"""The data file of codebooks and schedules, what is made of it, and whether its errors are true."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import norm

from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode
from kquant_cli.encoders.annealed import schedule as room
from kquant_cli.encoders.annealed.schedule import (
    FILE,
    SWEEPS,
    Schedule,
    better_kind,
    find_schedule,
    integer_points,
    load,
    points,
    searched_errors,
    to_entry,
)

ENTRIES = json.loads(FILE.read_text(encoding="utf-8"))["searched"]
NUMBERS = ["first", "second", "beta_first", "beta_last", "shape", "momentum_first", "momentum_last"]


def schedule_of(entry):
    return Schedule(**{name: entry[name] for name in NUMBERS})


@pytest.fixture
def file_of(monkeypatch, tmp_path):
    """Put other entries in the place of the data file's."""

    def use(*entries):
        path = tmp_path / "codebooks.json"
        path.write_text(json.dumps({"searched": entries}))
        monkeypatch.setattr(room, "FILE", path)
        clear()

    def clear():
        room.load.cache_clear()
        room._searched.cache_clear()

    yield use
    monkeypatch.undo()
    clear()


def entry(kind, levels, error, effort="balanced", **numbers):
    plain = {"first": 1.0, "second": 0.5, "beta_first": 1.0, "beta_last": 10.0, "shape": 1.0}
    plain |= {"momentum_first": 0.5, "momentum_last": 0.6, **numbers}
    return to_entry(kind, levels, effort, Schedule(**plain), error)


def test_the_file_names_its_script_and_its_measurement(pytestconfig):
    assert (pytestconfig.rootpath / load()["made_by"]).is_file()
    assert "Gaussian" in load()["measured"]


def test_every_entry_has_its_numbers_once():
    names = [(e["kind"], e["levels"], e["effort"]) for e in ENTRIES]
    assert len(set(names)) == len(names)
    for one in ENTRIES:
        assert set(one) == {"kind", "levels", "effort", "error", *NUMBERS}
        assert one["kind"] in ("ring", "product")
        assert one["effort"] in SWEEPS
        assert 0 < one["beta_first"] < one["beta_last"]
        assert max(abs(one["momentum_first"]), abs(one["momentum_last"])) < 0.8  # it diverges from 0.7 on, if constant
        assert one["levels"] ** -2.0 < one["error"] < 2.8 * one["levels"] ** -2.0 * (30 if one["kind"] == "ring" else 1)


@pytest.mark.parametrize("effort", SWEEPS)
def test_the_usual_level_counts_are_searched_at_every_effort(effort):
    """Errors fall with levels, and are below what Lloyd-Max leaves from 2 to 8 bits."""
    errors = searched_errors(effort)
    assert set(errors) >= {2, 3, 4, 8, 16, 32, 64, 256}
    ordered = [errors[levels] for levels in sorted(errors)]
    assert ordered == sorted(ordered, reverse=True)
    scalar = {4: 0.1175, 8: 0.0345, 16: 0.0095, 32: 0.0025, 64: 0.000644, 256: 0.0000412}
    assert all(errors[levels] < error for levels, error in scalar.items())


def test_searched_errors_are_the_least_of_the_kinds(file_of):
    file_of(entry("ring", 4, 0.08), entry("product", 4, 0.07), entry("ring", 8, 0.02), entry("ring", 4, 0.06, "best"))
    assert searched_errors("balanced") == {4: 0.07, 8: 0.02}
    assert searched_errors("balanced", "ring") == {4: 0.08, 8: 0.02}
    file_of(
        *(entry("ring", levels, 0.001) for levels in (64, 128, 256)),
        entry("product", 64, 4e-4),
        entry("product", 256, 1e-4),
    )
    assert searched_errors("balanced") == {64: 4e-4, 128: pytest.approx(2e-4), 256: 1e-4}


@pytest.mark.parametrize(
    ("levels", "effort"), [(4, "fast"), (8, "balanced"), (16, "balanced"), (5, "balanced"), (64, "fast")]
)
def test_the_errors_of_the_file_are_true(levels, effort):
    weight = torch.randn(96, 1024, generator=torch.Generator().manual_seed(20))
    for kind in ("ring", "product"):
        errors = searched_errors(effort, kind)
        if levels in errors:
            encoded = encode(weight, EncoderConfig(levels=levels, effort=effort, codebook=kind))
            assert encoded.record.relative_error**2 == pytest.approx(errors[levels], rel=0.03)


@pytest.mark.parametrize("one", ENTRIES, ids=lambda e: f"{e['kind']}-{e['levels']}-{e['effort']}")
def test_a_searched_count_gets_its_own_numbers(one):
    assert find_schedule(one["kind"], one["levels"], one["effort"]) == schedule_of(one)


def test_between_searched_counts_numbers_are_interpolated_in_the_logarithm(file_of):
    file_of(
        entry("ring", 4, 0.07, beta_last=10.0, second=0.0, momentum_first=-0.1),
        entry("ring", 16, 0.005, beta_last=1000.0, second=0.4, momentum_first=0.3),
    )
    middle = find_schedule("ring", 8, "balanced")
    assert middle.beta_last == pytest.approx(100)  # geometric
    assert middle.second == pytest.approx(0.2)  # arithmetic, where a number is not positive
    assert middle.momentum_first == pytest.approx(0.1)
    quarter = find_schedule("ring", 6, "balanced")
    assert quarter.beta_last == pytest.approx(10 * 100 ** (math.log(1.5) / math.log(4)))
    for far, near in ((2, 4), (3, 4), (40, 16), (256, 16)):
        assert find_schedule("ring", far, "balanced") == find_schedule("ring", near, "balanced")


@pytest.mark.parametrize("effort", SWEEPS)
def test_interpolation_is_monotone_between_entries(effort):
    counts = sorted(e["levels"] for e in ENTRIES if (e["kind"], e["effort"]) == ("ring", effort))
    for name in NUMBERS:
        values = [getattr(find_schedule("ring", levels, effort), name) for levels in range(2, 257)]
        for low, high in pairwise(counts):
            steps = np.diff(values[low - 2 : high - 1])
            assert (steps >= -1e-9).all() or (steps <= 1e-9).all()


def test_betas_and_momenta():
    schedule = Schedule(1.0, 0.5, 2.0, 50.0, 0.7, 0.4, 0.7)
    x = np.arange(9) / 8
    np.testing.assert_allclose(schedule.betas(9), 2 * 25 ** (x**0.7), rtol=1e-6)
    np.testing.assert_allclose(schedule.momenta(9), 0.4 + 0.3 * x, rtol=1e-6)
    assert schedule.betas(9).dtype == schedule.momenta(9).dtype == torch.float32
    assert schedule.betas(1).tolist() == [50]
    assert schedule.momenta(1).tolist() == pytest.approx([0.7])


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 16, 256])
def test_a_ring(levels):
    schedule = Schedule(0.9, 0.3, 1.0, 2.0, 1.0, 0.5, 0.5)
    angles = 2 * np.pi * (np.arange(levels) + 0.3) / levels
    expected = 0.9 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(points("ring", levels, schedule), expected, rtol=0, atol=1e-6)


def test_a_product_by_hand():
    """Levels of the best quantisers of 2 and 4 levels: sqrt(2 / pi); 0.4528 and 1.5104 (Max, 1960)."""
    schedule = Schedule(0.8, 0.3, 1.0, 2.0, 1.0, 0.5, 0.5)
    a = 0.8 * math.sqrt(2 / math.pi)
    expected = torch.tensor([[-a, -0.3], [-a, 0.3], [a, -0.3], [a, 0.3]])
    torch.testing.assert_close(points("product", 4, schedule), expected)
    u = points("product", 8, schedule)[:, 0]
    torch.testing.assert_close(u[::2], torch.tensor([-1.5104, -0.4528, 0.4528, 1.5104]) * 0.8, rtol=0, atol=5e-5)
    assert points("product", 7, schedule).tolist() == points("product", 8, schedule)[:7].tolist()
    assert points("product", 2, schedule).tolist() == [[0, pytest.approx(-0.3)], [0, pytest.approx(0.3)]]


def test_levels_of_a_large_product_are_centroids():
    u = points("product", 64, Schedule(1.0, 0.1, 1, 2, 1, 0, 0))[::2, 0].double().numpy()
    borders = np.concatenate([[-np.inf], (u[1:] + u[:-1]) / 2, [np.inf]])
    means = (norm.pdf(borders[:-1]) - norm.pdf(borders[1:])) / np.diff(norm.cdf(borders))
    np.testing.assert_allclose(u, means, atol=1e-5)


def test_the_better_kind_is_that_with_less_error_where_both_are_known(file_of):
    file_of(
        *(entry("ring", 4, 0.071), entry("ring", 64, 6e-4), entry("ring", 256, 2e-4)),
        *(entry("product", 4, 0.070), entry("product", 64, 7e-4), entry("product", 256, 4e-5)),
        *(entry("ring", 4, 0.071, "best"), entry("ring", 16, 0.005, "best"), entry("product", 4, 0.070, "best")),
    )
    assert [better_kind(levels, "balanced") for levels in (2, 3, 4, 5, 16, 64, 128, 256)] == [
        *("ring", "ring", "product", "ring", "ring", "ring", "product", "product")
    ]
    assert better_kind(255, "balanced") == "product"  # large enough to miss one point of 256
    assert better_kind(4, "best") == "product"
    assert better_kind(16, "best") == "ring"  # the product of 4 says nothing about 16
    assert better_kind(256, "best") == "ring"


def test_a_ring_may_cost_a_little_for_being_constant(file_of):
    file_of(
        *(entry("ring", 4, 0.0700), entry("ring", 8, 0.0200), entry("ring", 16, 0.006)),
        *(entry("product", 4, 0.0698), entry("product", 8, 0.01993), entry("product", 16, 0.007)),
    )
    assert [better_kind(levels, "balanced") for levels in (4, 8, 16)] == ["ring", "product", "ring"]


def test_integers_in_the_size_of_a_ring():
    schedule = Schedule(0.9, 0.3, 1.0, 2.0, 1.0, 0.5, 0.5)
    found = integer_points([[3, 4], [-5, 12], [-3, -4], [5, -12]], schedule)
    unit = 0.9 / math.sqrt((25 + 169) / 2)
    expected = torch.tensor([[3.0, 4.0], [-5.0, 12.0], [-3.0, -4.0], [5.0, -12.0]]) * unit
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_entries_are_rounded_to_what_matters():
    made = to_entry("ring", 8, "fast", Schedule(0.123456789, 0.5, 1.0, 123456.789, 1.0, 0.5, 0.6), 0.012345678)
    assert (made["first"], made["beta_last"], made["error"]) == (0.12346, 123460.0, 0.01235)
    assert Schedule(**{name: made[name] for name in NUMBERS}) == Schedule(0.12346, 0.5, 1.0, 123460.0, 1.0, 0.5, 0.6)
