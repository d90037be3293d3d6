"""The search of the constant codebooks: what it chooses from, and that it never changes what bundles may have."""

import importlib
import json

import numpy as np
import pytest

from kquant_cli.codebooks.integer_grids import integer_grids, ring_name


@pytest.fixture
def search(scripts, monkeypatch):
    monkeypatch.syspath_prepend(scripts)
    return importlib.import_module("search_integer_grids")


@pytest.mark.parametrize("levels", [2, 3, 8, 16, 22, 32])
def test_the_codebooks_are_among_its_candidates(levels, search):
    tables = [table.tolist() for table in search.candidates(levels)]
    assert [list(point) for point in integer_grids()[ring_name(levels)]] in tables


def test_the_nearest_to_a_ring_comes_first(search):
    moved = []
    for table in search.candidates(12):
        z = (table[:, 0] + 1j * table[:, 1]) * np.exp(-2j * np.pi * np.arange(12) / 12)
        moved.append(float(np.square(np.abs(z / z.mean() - 1)).mean()))
    assert moved[0] < 1e-7  # by chance rounding moves points of this radius by 1e-5
    assert (np.diff(moved) > -1e-12).all()


def test_a_name_that_is_there_stays(search, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "FILE", tmp_path / "grids.json")
    search.keep(3, np.array([[1, 2], [3, 4], [5, 6]]))
    search.keep(2, np.array([[1, 0], [-1, 0]]))
    search.keep(3, np.zeros((3, 2), dtype=int))
    kept = json.loads((tmp_path / "grids.json").read_text())
    assert list(kept.items()) == [("ring-2", [[1, 0], [-1, 0]]), ("ring-3", [[1, 2], [3, 4], [5, 6]])]
