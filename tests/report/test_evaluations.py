"""The table of evaluations, from JSON entries."""

from typing import Any

from rich.console import Console

from kquant_cli.report import evaluation_table


def entry(task: str, metrics: dict[str, float | None], **more: Any) -> dict[str, Any]:
    return {
        "task": task,
        "model": "/tmp/[a]-4bit",
        "model_kind": "bundle",
        "metrics": metrics,
        "counts": {"examples": 1043},
        "seconds": 2.5,
        **more,
    }


AGAINST = {
    "model": "org/whole",
    "model_kind": "dense",
    "metrics": {"perplexity": 30.0},
    "differences": {
        "perplexity": {"value": 1.25, "standard_error": 0.5},
        "nll": {"value": 0.04, "standard_error": None},
    },
    "kl_divergence": {"value": 0.0312, "standard_error": 0.001},
    "agreement": 0.9125,
    "per": "token",
}


def lines(*entries: dict[str, Any]) -> list[str]:
    console = Console(record=True, width=140)
    console.print(evaluation_table(entries))
    return [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]


def test_results_of_one_kind_are_a_row_each() -> None:
    shown = lines(entry("rte", {"accuracy": 0.61234}), entry("sst2", {"accuracy": 0.9}))
    assert shown[3] == "rte [a]-4bit (bundle) 0.6123 1,043 2.5"
    assert shown[4] == "sst2 [a]-4bit (bundle) 0.9000 1,043 2.5"


def test_results_of_several_kinds_are_a_row_a_metric() -> None:
    shown = lines(entry("mrpc", {"accuracy": 0.8, "f1": 0.85}), entry("stsb", {"pearson": None}))
    assert shown[3:6] == [
        "mrpc [a]-4bit (bundle) accuracy 0.8000 2.5",
        "f1 0.8500",
        "stsb [a]-4bit (bundle) pearson undefined 2.5",
    ]


def test_the_original_stands_beside() -> None:
    shown = lines(entry("ptb", {"perplexity": 31.25}, against=AGAINST))
    assert shown[0] == "[a]-4bit (bundle) against whole (dense)"
    assert shown[4] == "ptb perplexity 31.2500 30.0000 +1.2500 ± 0.5000"
    assert shown[5] == "KL divergence 0.0312 ± 0.001"
    assert shown[6] == "same token 91.25%"
    mixed = lines(entry("ptb", {"perplexity": 31.25}, against=AGAINST), entry("rte", {"accuracy": 0.5}))
    assert mixed[3] == "ptb [a]-4bit (bundle) perplexity 31.2500 30.0000 +1.2500 ± 0.5000"
    assert mixed[6] == "rte [a]-4bit (bundle) accuracy 0.5000"


def test_numbers_beyond_reading_are_short() -> None:
    assert "1.2346e+08" in lines(entry("ptb", {"perplexity": 123456789.0}))[3]
