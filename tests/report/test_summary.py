"""What a summary takes from the files of a bundle, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models

from kquant_cli.bundle import open_bundle
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import pipeline
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import CompressConfig
from kquant_cli.errors import KQuantError
from kquant_cli.report import summarise


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A bundle of a model whose feed-forward size, 34, has a Hadamard matrix in blocks only."""
    folder = tmp_path_factory.mktemp("summary")
    checkpoint = open_checkpoint(tiny_models.make("llama", folder / "model", intermediate_size=34))
    settings = CompressConfig(encoder="greedy", calibration="none", basis="hadamard", max_iter=3)
    pipeline.compress(make_plan(checkpoint, settings), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def bundle(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def change_manifest(bundle, change):
    manifest = json.loads((bundle / "kquant.json").read_text())
    change(manifest)
    (bundle / "kquant.json").write_text(json.dumps(manifest))


def test_notes_of_layers_reach_the_reader(bundle, kquant):
    change_manifest(bundle, lambda m: m.update(notes=["of the whole"]))
    first, *others = summarise(open_bundle(bundle))["notes"]
    assert first == "of the whole"
    assert len(others) == 1  # though six of the fourteen layers have it
    assert "block-diagonal" in others[0]
    shown = kquant("inspect", bundle).out
    assert "of the whole" in shown
    assert "block-diagonal" in shown


@pytest.mark.parametrize("text", ["", "{", "[]", None])
def test_run_is_no_part_of_the_bundle(bundle, text):
    assert summarise(open_bundle(bundle))["run"]["seconds"] > 0
    if text is None:
        (bundle / "run.json").unlink()
    else:
        (bundle / "run.json").write_text(text)
    assert summarise(open_bundle(bundle))["run"] == {}


def matrix(**values):
    return lambda manifest: next(iter(manifest["matrices"].values())).update(values)


ALLOCATION = {"target_bits": 2.5, "reached_bits": 2.4, "sensitivities": "text [1].txt", "matrices": {}}


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda m: m.pop("statistics"), None),
        (lambda m: m.update(statistics=None, allocation=None), None),
        (lambda m: m.update(statistics={"source": "none"}), "channel scaling none"),
        (
            lambda m: m.update(statistics={"source": "a [b].txt (SHA-256 12)", "groups": [{"members": []}] * 2}),
            "channel scaling a [b].txt, 2 inputs",
        ),
        (lambda m: m.update(allocation=ALLOCATION), "average 2.4000 bits of 2.5, by sensitivities on text [1].txt"),
    ],
)
def test_what_was_measured_is_shown_where_the_manifest_has_it(bundle, kquant, change, shown):
    """Bundles made before there were statistics have none."""
    change_manifest(bundle, change)
    result = kquant("inspect", bundle)
    assert result.code == 0
    if shown is None:
        assert "channel scaling" not in result.out
    else:
        assert shown in " ".join(result.out.split())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m.update(source=None), "source"),
        (lambda m: m["source"].update(revision=3), "source.revision"),
        (lambda m: m.pop("totals"), "totals"),
        (lambda m: m["totals"].update(parameters="9"), "totals.parameters"),
        (lambda m: m.update(notes=3), "notes"),
        (matrix(shape=[1, 2, 3]), "shape"),
        (matrix(u_max="1"), "u_max"),
        (matrix(relative_error=None), "relative_error"),
        (matrix(trace=["1"]), "trace.0"),
        (matrix(relative_error=1e300), "relative_error"),  # its square is no float
        (matrix(relative_error=-1), "relative_error"),
        (matrix(u_max=1e300), "u_max"),
        (matrix(shape=[2**31, 1]), "shape.0"),
        (lambda m: m["totals"].update(bytes=10**400), "totals.bytes"),  # nor is this
        (lambda m: next(iter(m["matrices"].values())).pop("v_max"), "v_max"),
        (lambda m: m.update(statistics="random"), "statistics"),
        (lambda m: m.update(statistics={"tokens": 3}), "statistics.source"),
        (lambda m: m.update(statistics={"source": "random", "groups": 3}), "statistics.groups"),
        (lambda m: m.update(allocation=[]), "allocation"),
        (lambda m: m.update(allocation={**ALLOCATION, "reached_bits": None}), "allocation.reached_bits"),
        (lambda m: m.update(allocation={**ALLOCATION, "target_bits": "2.5"}), "allocation.target_bits"),
        (lambda m: m.update(allocation={**ALLOCATION, "matrices": {"a": {}}}), "allocation.matrices.a.levels"),
    ],
)
def test_damaged_manifest(bundle, change, what):
    change_manifest(bundle, change)
    with pytest.raises(KQuantError) as error:
        summarise(open_bundle(bundle))
    assert str(error.value).startswith(f"{bundle / 'kquant.json'}: lacks or garbles ")
    assert f"{what};" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_manifest_with_a_number_that_is_not_finite_is_refused(bundle, kquant, number):
    """In whatever it says: its settings are shown in the JSON of inspect, which has no word for such a number."""
    text = (bundle / "kquant.json").read_text()
    (bundle / "kquant.json").write_text(text.replace('"settings": {', f'"settings": {{"x": {number},', 1))
    result = kquant("inspect", bundle)
    assert result.code == 2
    assert "expected finite numbers" in result.err


def test_run_is_bounded(bundle):
    (bundle / "run.json").write_text(json.dumps({"seconds": 1.0, "x": "y" * 1_000_000}))
    assert summarise(open_bundle(bundle))["run"] == {}
    (bundle / "run.json").write_text('{"seconds": NaN}')
    assert summarise(open_bundle(bundle))["run"] == {}


def test_a_tuning_that_was_not_finite_is_shown(bundle, kquant):
    tuning = {"steps": 1, "tokens": 2, "tuned": 0, "held_out_divergence": {"before": 0.5, "after": None}}
    change_manifest(bundle, lambda m: m.update(tuning=tuning))
    assert "held-out KL 0.5000 -> undefined nats" in " ".join(kquant("inspect", bundle).out.split())


EVIL = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e[/][bold red]x[/]\u2066"


def test_nothing_that_a_bundle_says_steers_the_terminal(bundle, kquant):
    """Names, notes and sentences, with escape sequences, returns, marks of direction, and markup of rich's own."""

    def change(manifest):
        first = next(iter(manifest["matrices"]))
        manifest["matrices"][EVIL] = manifest["matrices"].pop(first) | {"notes": [EVIL], "encoder": EVIL, "basis": EVIL}
        manifest["source"] = {"name": EVIL, "revision": EVIL}
        manifest["notes"] = [EVIL]
        manifest["statistics"] = {"source": EVIL}
        manifest["allocation"] = ALLOCATION | {"sensitivities": EVIL}

    change_manifest(bundle, change)
    result_file = {"task": EVIL, "measured": EVIL, "sentence": EVIL, "model": EVIL, "model_kind": EVIL,
                   "metrics": {EVIL: 1.0}, "counts": {EVIL: 1}}  # fmt: skip
    against = {"against": {"model": EVIL, "metrics": {EVIL: 1.0}, "differences": {}, "per": EVIL}}
    (bundle / "results").mkdir()
    (bundle / "results" / "a.json").write_text(json.dumps(result_file))
    for more in ({}, against):
        (bundle / "results" / "b.json").write_text(json.dumps(result_file | more))
        result = kquant("inspect", bundle)
        assert result.code == 0
        assert "[bold red]x[/]" in result.out  # shown as it is
        printed = (result.out + result.err).replace("\n", "")
        assert not [c for c in printed if ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066"]
