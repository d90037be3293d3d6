"""`kquant eval` from the outside: what it prints, writes and refuses."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_classifiers
import tiny_text_models
import typer
from typer.testing import CliRunner

from kquant_cli.bundle import kept_results
from kquant_cli.cli.evaluate import evaluate
from kquant_cli.devices import DTYPES
from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import EvalOptions, perplexity
from kquant_cli.evaluation.texts import text_file
from kquant_cli.runtime import load_model

KQuant = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_models.make(tmp_path_factory.mktemp("eval") / "tiny-opt")


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "prose.txt"
    path.write_text(f" = Kashin = \n{tiny_text_models.text()}", encoding="utf-8")
    return path


def test_the_printed_number_is_the_perplexity(kquant: KQuant, model: Path, prose: Path, tmp_path: Path) -> None:
    written = tmp_path / "results.json"
    run = kquant("eval", model, "--task", "text,wikitext2", "--data", prose, "--json", written, "--device", "cpu")
    assert run.code == 0, run.err
    first, second = json.loads(written.read_text())["results"]
    expected = perplexity(load_model(model, device="cpu"), text_file(prose, "text"), EvalOptions())
    assert first["perplexity"] == pytest.approx(expected.perplexity, rel=1e-6)
    assert f"{expected.perplexity:.2f}" in run.out
    assert (first["task"], second["task"]) == ("text", "wikitext2")
    assert first["data_sha256"] == expected.data_sha256 != second["data_sha256"]
    assert first["data"] == f"{prose}, verbatim"
    assert (first["model"], first["model_kind"], first["protocol"]) == (str(model), "dense", "gptq")
    assert (first["seqlen"], first["windows"], first["tokens"]) == (64, expected.windows, expected.tokens)
    assert {"kquant_cli", "torch", "transformers"} == set(first["versions"])
    assert "text: gptq protocol: windows of 64 tokens without overlap, tail dropped" in run.out
    assert "float32 on cpu" in run.out


def test_options_reach_the_protocol(kquant: KQuant, model: Path, prose: Path, tmp_path: Path) -> None:
    written = tmp_path / "results.json"
    options = ("--protocol", "stride", "--seqlen", 50, "--stride", 20, "--limit", 3, "--dtype", "float64")
    run = kquant("eval", model, "--task", "text", "--data", prose, "--json", written, "--device", "cpu", *options)
    assert run.code == 0, run.err
    (result,) = json.loads(written.read_text())["results"]
    loaded = load_model(model, device="cpu", dtype="float64")
    same = EvalOptions(protocol="stride", seqlen=50, stride=20, limit=3)
    expected = perplexity(loaded, text_file(prose, "text"), same)
    assert result["perplexity"] == pytest.approx(expected.perplexity, rel=1e-12)
    assert (result["windows"], result["tokens"], result["dtype"]) == (3, 89, "float64")
    assert "windows of 50 tokens every 20" in run.out


def test_progress_is_plain_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, kquant: KQuant, model: Path, prose: Path
) -> None:
    monkeypatch.setattr(sys.modules[evaluate.__module__], "LINE_SECONDS", 0.0)
    run = kquant("eval", model, "--task", "text", "--data", prose, "--limit", 3, "--device", "cpu")
    assert "text: 3 of 3 windows, 0 s left" in run.err
    assert "\x1b" not in run.err


def test_demo_needs_no_data(kquant: KQuant, model: Path) -> None:
    run = kquant("eval", model, "--task", "demo", "--limit", 2, "--device", "cpu")
    assert run.code == 0, run.err
    assert "the demo text of kquant_cli" in run.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--task", "wikitxt2"), "did you mean wikitext2"),
        (("--task", "text"), "--data FILE"),
        (("--task", "text", "--data", "absent.txt"), "absent.txt cannot be read"),
        (("--task", "demo", "--protocol", "stride", "--seqlen", 32, "--stride", 33), "--stride 33 must be from 1 to"),
        (("--task", "demo", "--seqlen", 65), "longer than the model's maximum of 64"),
        (("--task", "demo", "--protocol", "words"), "use gptq, stride or paper"),
        (("--task", "demo", "--limit", 0), "--limit 0"),
        (("--task", "demo", "--dtype", "int3"), "dtype 'int3' is not known"),
        (("--task", "demo", "--device", "meta"), "device 'meta' is not one that kquant runs on"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    kquant: KQuant, model: Path, options: tuple[object, ...], says: str
) -> None:
    run = kquant("eval", model, "--device", "cpu", *options)
    assert run.code == 2
    assert says in run.err
    assert run.out == ""
    assert len(run.err.strip().splitlines()) == 1


def test_a_text_shorter_than_one_window(kquant: KQuant, model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("ka shin", encoding="utf-8")
    run = kquant("eval", model, "--task", "text", "--data", short, "--device", "cpu")
    assert run.code == 2
    assert "fewer than one window of 64" in run.err


def test_without_an_argument_the_newest_bundle_is_taken_and_named(
    monkeypatch: pytest.MonkeyPatch, kquant: KQuant, model: Path, prose: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = kquant("eval", "--task", "text", "--data", prose)
    assert run.code == 2
    assert "no bundle under bundles" in run.err
    monkeypatch.setattr("kquant_cli.bundle.newest_bundle", lambda folder: model if folder == Path("bundles") else None)
    run = kquant("eval", "--task", "text", "--data", prose, "--limit", 1, "--device", "cpu")
    assert run.code == 0, run.err
    assert f"{model}, the newest bundle" in run.err


def test_offline_wikitext2_says_what_to_get(
    kquant: KQuant, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "empty"))
    run = kquant("eval", model, "--task", "wikitext2")
    assert run.code == 2
    assert "pass it as --data wiki.test.raw" in " ".join(run.err.split())
    assert "Traceback" not in run.err


def test_help_gives_examples() -> None:
    app = typer.Typer()
    app.command("eval")(evaluate)
    run = CliRunner().invoke(app, ["--help"])
    assert run.exit_code == 0
    assert "kquant eval --task wikitext2" in run.output
    assert all(name in run.output for name in DTYPES)
    assert isinstance(CliRunner().invoke(app, ["x", "--task", "y"]).exception, KQuantError)


@pytest.fixture(scope="module")
def bundle(model: Path) -> Path:
    from kquant_cli.checkpoint import open_checkpoint
    from kquant_cli.compress import pipeline
    from kquant_cli.compress.plan import make_plan
    from kquant_cli.config import CompressConfig

    out = model.parent / "tiny-opt-4bit"
    pipeline.compress(make_plan(open_checkpoint(model), CompressConfig(encoder="uniform", bits=4)), out)
    return out


def test_against_the_original_and_what_the_bundle_keeps(
    kquant: KQuant, model: Path, bundle: Path, tmp_path: Path
) -> None:
    prose, words = tmp_path / "prose.txt", tiny_text_models.text().split()
    prose.write_text("\n".join(" ".join(words[i : i + 7]) for i in range(0, 595, 7)), encoding="utf-8")
    options = ("--task", "text,lambada_word", "--data", prose, "--limit", 5, "--device", "cpu")
    written = tmp_path / "r.json"
    run = kquant("eval", bundle, *options, "--against", model, "--json", written)
    assert run.code == 0, run.err
    text, word = json.loads(written.read_text())["results"]
    dense = perplexity(load_model(model, device="cpu"), text_file(prose, "text"), EvalOptions(limit=5))
    assert text["against"]["metrics"]["perplexity"] == pytest.approx(dense.perplexity, rel=1e-6)
    difference = text["against"]["differences"]["perplexity"]
    assert f"{difference['value']:+.4f} ± {difference['standard_error']:.4f}" in run.out
    assert text["against"]["kl_divergence"]["value"] > 0
    assert f"{word['against']['agreement']:.2%}" in run.out
    assert f"against {model} (dense, float32)" in run.out
    kept = [json.loads(file.read_text()) for file in sorted((bundle / "results").iterdir())]
    assert [entry["task"] for entry in kept] == ["lambada_word", "text"]
    assert kept[1]["metrics"] == text["metrics"]
    shown = kquant("inspect", bundle, "--json", tmp_path / "inspect.json")
    assert f"{text['metrics']['perplexity']:.4f}" in shown.out
    assert f"{kept[0]['measured'][:10]} {word['sentence']}" in shown.out
    assert [r["task"] for r in json.loads((tmp_path / "inspect.json").read_text())["results"]] == [
        "lambada_word",
        "text",
    ]
    assert kquant("eval", bundle, *options).code == 0  # the results beside it leave the bundle whole
    assert len(list((bundle / "results").iterdir())) == 4
    assert not (model / "results").exists()


def test_a_bundle_that_cannot_be_written_says_where_its_results_are(
    kquant: KQuant, bundle: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "locked"
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("results"))
    (copy / "results").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    options = ("--task", "text", "--data", prose, "--limit", 2, "--device", "cpu")
    run = kquant("eval", copy, *options)
    assert run.code == 0, run.err
    assert f"{copy} cannot be written, so the result of text is kept in results/locked/text-gptq-" in run.err
    (tmp_path / "results/locked").rename(tmp_path / "away")
    (tmp_path / "results/locked").write_text("in the way too")
    run = kquant("eval", copy, *options)
    assert run.code == 0, run.err
    assert "text: the result is not kept: neither" in run.err


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with classifiers for three tasks, and one with their official files and another's."""
    root = tmp_path_factory.mktemp("glue")
    for task, outputs in (("cola", 2), ("MRPC", 2), ("sts-b", 1)):
        tiny_classifiers.make(root / "models" / task, num_labels=outputs)
    for task in ("cola", "mrpc", "stsb", "rte"):
        tiny_classifiers.write_tsv(task, root / "data")
    return root / "models", root / "data"


def test_glue_runs_what_the_folder_has(kquant: KQuant, classifiers: tuple[Path, Path], tmp_path: Path) -> None:
    models, data = classifiers
    written = tmp_path / "glue.json"
    run = kquant("eval", models, "--task", "glue", "--data", data, "--device", "cpu", "--json", written)
    assert run.code == 0, run.err
    assert f"{models} has no checkpoint for sst2, qqp, mnli, qnli, rte, wnli: left out" in run.err
    results = json.loads(written.read_text())["results"]
    assert [(r["task"], list(r["metrics"])) for r in results] == [
        ("cola", ["matthews"]),
        ("mrpc", ["accuracy", "f1"]),
        ("stsb", ["pearson", "spearman"]),
    ]
    for result in results:
        assert all(f"{value:.4f}" in run.out for value in result["metrics"].values())
        assert {"protocol", "data_sha256", "dtype", "seqlen", "counts", "versions", "seconds"} <= set(result)
    assert "run_glue's protocol: at most 64 tokens an example; 16 examples" in run.out


def test_a_classifiers_bundle_against_its_original(
    kquant: KQuant, classifiers: tuple[Path, Path], tmp_path: Path
) -> None:
    models, data = classifiers
    assert kquant("compress", models / "MRPC", "--encoder", "uniform", "--bits", 3, "-o", tmp_path / "mrpc").code == 0
    for model, original in ((tmp_path / "mrpc", models / "MRPC"), (tmp_path, models)):
        run = kquant("eval", model, "--task", "mrpc", "--data", data, "--against", original, "--device", "cpu")
        assert run.code == 0, run.err
        assert "paired over examples" in run.out
        assert "same label" in run.out
    assert [entry["task"] for entry in kept_results(tmp_path / "mrpc")[0]] == ["mrpc"]


def test_bad_input_of_classification(kquant: KQuant, classifiers: tuple[Path, Path], model: Path) -> None:
    models, data = classifiers
    for arguments, says in (
        ((models, "--task", "rte", "--data", data), "nor a checkpoint in a sub-folder rte/"),
        ((models / "cola", "--task", "glue", "--data", data), "is a single checkpoint"),
        ((models, "--task", "cola", "--data", data / "rte"), "there is no"),
        ((model, "--task", "cola", "--data", data), "lacks tensors that OPTForSequenceClassification needs"),
        ((models / "cola", "--task", "stsb", "--data", data), "task 'stsb' needs 1 (the score)"),
        ((models / "cola", "--task", "cola", "--data", data, "--against", "./absent"), "there is no folder './absent'"),
        ((models / "cola", "--task", "cola", "--data", data, "--against", model), "lacks tensors that OPTForSequence"),
    ):
        run = kquant("eval", *arguments, "--device", "cpu")
        assert run.code == 2, arguments
        assert says in run.err
        assert run.out == ""
