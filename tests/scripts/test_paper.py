"""`scripts/paper/`: at small sizes the numbers are what the mathematics, or the paper, says."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_classifiers
import tiny_text_models
import torch
from safetensors.torch import load_file, save_file

GAUSSIAN_STEP = math.sqrt(1 - 2 / math.pi)  # what a greedy step leaves of a Gaussian matrix's norm


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scripts: Path) -> Callable[..., dict[str, Any]]:
    """paper("table1", option, ...): run a script in this process, and return its JSON; a figure must be beside it."""
    monkeypatch.syspath_prepend(scripts / "paper")

    def run(script: str, *options: object, figure: bool = True) -> dict[str, Any]:
        importlib.import_module(script).main([*map(str, options), "--output", str(tmp_path)])
        assert (tmp_path / f"{script}.png").exists() is figure
        values: dict[str, Any] = json.loads((tmp_path / f"{script}.json").read_text())
        assert values["machine"]["cores"]
        return values

    return run


def test_figures_2_and_3(paper: Callable[..., dict[str, Any]]) -> None:
    values = paper("figure2_3", "--model", "--size", 64, "--max-iter", 60, "--bases", "identity", "dct", "qr")
    rows = {(row["matrix"], row["form"], row["basis"]): row for row in values["rows"]}
    assert len(rows) == 2 * 2 * 3
    for form in ("vector", "matrix"):
        gaussian = rows["Gaussian", form, "dct"]
        assert gaussian["converged"] and 26 <= gaussian["iterations"] <= 45  # log(1e-6) / log(0.603) is 27.3
        assert gaussian["trace"][0] == [1, pytest.approx(GAUSSIAN_STEP, abs=0.03)]
        stuck = rows["Gaussian", form, "identity"]  # the authors' Givens
        assert not stuck["converged"] and stuck["iterations"] == 60 and stuck["residual"] > 0.01
    assert rows["Gaussian", "vector", "identity"]["rows_converged"] == 0
    assert rows["Gaussian", "vector", "dct"]["rows_converged"] == 1


def test_figure_4(paper: Callable[..., dict[str, Any]]) -> None:
    values = paper("figure4", "--sizes", 4, 8, 16, "--repeats", 1, "--largest-dense", 64)
    forms = [(row["n"], row["basis"]) for row in values["rows"] if row["form"] == "vector"]
    assert forms == [(4, "dct"), (4, "qr"), (8, "dct"), (8, "qr"), (16, "dct")]  # 256 x 256 would be too large
    assert all(row["seconds"] > 0 for row in values["rows"])
    assert all(row["converged"] for row in values["rows"] if row["n"] == 16)


def test_table_1(paper: Callable[..., dict[str, Any]]) -> None:
    options = ("--size", 64, "--seeds", 2, "--bases", "identity", "householder", "dct", "qr")
    rows = {row["basis"]: row for row in paper("table1", *options, figure=False)["rows"]}
    assert rows["identity"]["complex_least"] == rows["identity"]["real_mean"] == 1 / 8  # its eigenvectors are spikes
    assert (rows["identity"]["multiplicity"], rows["householder"]["multiplicity"]) == (64, 63)
    assert rows["qr"]["complex_mean"] == pytest.approx(math.sqrt(math.pi) / 2, abs=0.02)  # complex Gaussian vectors
    assert rows["householder"]["real_least"] < rows["dct"]["real_least"] <= rows["dct"]["real_mean"] <= 1


def test_figure_6(paper: Callable[..., dict[str, Any]]) -> None:
    (row,) = paper("figure6", "--model", "--size", 96, "--bits", 4, "--max-iter", 60)["rows"]
    assert len(row["centroids"]) == 16
    assert max(row["u_max"], row["v_max"]) < 0.6 * row["weight_max"]  # small entries are what it is for
    assert row["distance"] < 0.3 * row["spread"]  # pairs crowd around the centroids
    assert 0.01 < row["relative_squared_error"] < 0.03


def test_pathological_matrices(paper: Callable[..., dict[str, Any]]) -> None:
    options = ("--size", 32, "--max-iter", 60, "--bases", "identity", "dct", "--matrices", "Gaussian", "one entry")
    rows = {(row["matrix"], row["method"]): row for row in paper("pathological", *options)["rows"]}
    assert len(rows) == 2 * (2 + 3)
    assert rows["Gaussian", "dct"]["converged"] and not rows["Gaussian", "identity"]["converged"]
    assert rows["one entry", "identity"]["iterations"] == 1  # its own sign, times its size
    assert rows["one entry", "kmeans"]["relative_squared_error"] < 1e-12  # two values, sixteen centroids
    assert not rows["one entry", "dct"]["converged"]


def test_bases(paper: Callable[..., dict[str, Any]]) -> None:
    options = ("--model", "--size", 48, "--seeds", 1, "--max-iter", 60, "--bases", "identity", "dct", "qr")
    rows = {row["basis"]: row for row in paper("bases", *options)["rows"]}
    heavy = {kind: row["errors"]["Student-t(3)"] for kind, row in rows.items()}
    assert heavy["identity"] > 2 * max(heavy["dct"], heavy["qr"])
    assert rows["dct"]["errors"]["Gaussian"] == pytest.approx(rows["qr"]["errors"]["Gaussian"], rel=0.3)
    assert "perplexity" not in rows["dct"]


def test_iterations(paper: Callable[..., dict[str, Any]]) -> None:
    values = paper("iterations", "--model", "--size", 64, "--counts", 1, 8, 20, "--thresholds", 0.5, 1e-3)
    rows = {(row["varied"], row[row["varied"]]): row for row in values["rows"]}
    errors = [rows["max_iter", count]["errors"]["Gaussian"] for count in (1, 8, 20)]
    assert errors[0] > 10 * errors[1]
    assert errors[2] == pytest.approx(errors[1], rel=0.3)  # what is left after 8 steps is below the clustering's error
    loose, tight = (rows["tol", tol]["iterations"]["Gaussian"] for tol in (0.5, 1e-3))
    assert loose == math.ceil(math.log(0.5) / math.log(GAUSSIAN_STEP)) == 2
    assert tight == pytest.approx(math.log(1e-3) / math.log(GAUSSIAN_STEP), abs=3)


def test_table_2(paper: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    model = tiny_text_models.make(tmp_path / "tiny")
    data = tmp_path / "lambada_test_plain_text.txt"
    words = tiny_text_models.text().split()
    passages = [" ".join(words[n : n + 40]) for n in range(0, len(words) - 40, 40)]
    data.write_text("\n".join(passages), encoding="utf-8")
    asked = ["uniform 8 bits", "uniform 4 bits", "Kashin 4 bits, bad layers dense", "4 bits + Kashin 6 bits"]
    options = ("--model", model, "--data", data, "--limit", 4, "--max-iter", 3, "--basis", "qr")
    paper("table2", *options, "--rows", *asked[:2], figure=False)
    rows = {row["row"]: row for row in paper("table2", *options, "--rows", *asked, figure=False)["rows"]}
    assert list(rows) == ["float", *asked]
    losses = {name: row["metrics"]["perplexity"] for name, row in rows.items()}
    assert losses["uniform 8 bits"] == pytest.approx(losses["float"], rel=0.01)
    # In three steps no layer converges: each stays dense, or goes to uniform 4 bits.
    assert (rows[asked[2]]["encoded_share"], rows[asked[3]]["fallback_share"]) == (0, 1)
    assert losses[asked[2]] == pytest.approx(losses["float"], rel=1e-4)
    assert losses[asked[3]] == losses["uniform 4 bits"] != losses["float"]


def test_table_3(paper: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    data = tiny_classifiers.write_tsv("cola", tmp_path / "data")
    file = tiny_classifiers.make(tmp_path / "classifiers" / "cola", num_labels=2) / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if weight.ndim == 2 and ".layer." in name:
            weight[0, 0] = 30 * weight.std()  # an outlier, as trained layers have them
    save_file(weights, file, metadata={"format": "pt"})
    options = (tmp_path / "classifiers", "--data", data, "--tasks", "cola", "--max-iter", 50)
    values = paper("table3", *options, figure=False)
    rows = {row["row"]: row for row in values["rows"]}
    assert list(rows) == ["float", "uniform", "k-means", "Kashin (greedy)", "annealed", "annealed, channel scales"]
    assert rows["uniform"]["error"] > 3 * rows["Kashin (greedy)"]["error"] > 3 * rows["annealed"]["error"]
    assert all(len(row["scores"]) == 1 and -100 <= row["scores"][0] <= 100 for row in values["rows"])
    assert values["published"]["BERT-base"]["Kashin (greedy)"]["cola"] == [59.65]


def test_results_are_readable(paper: Callable[..., dict[str, Any]]) -> None:
    common = importlib.import_module("common")
    assert common.thinned(torch.tensor([0.6, 0.36, 0.2])) == [[1, 0.6], [2, 0.36], [3, 0.2]]
    assert common.rounded({"a": [math.inf, 0.1234567]}) == {"a": [None, 0.12346]}


def test_a_mistake_is_one_sentence(paper: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    common = importlib.import_module("common")
    figure = importlib.import_module("figure6")
    with pytest.raises(SystemExit) as stop:
        common.command(lambda: figure.main(["--layers", "*.fc9"]))
    assert stop.value.code == 2
    assert "none of its layers is called *.fc9" in capsys.readouterr().err
