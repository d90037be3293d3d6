"""Evaluations beside a bundle: where they go, what takes whose place, and what is refused by name."""

import errno
import json
from pathlib import Path

import pytest

from kquant_cli.bundle import keep_result, kept_results
from kquant_cli.errors import KQuantError

RESULT = {
    "task": "lambada_word",
    "model": "x",
    "protocol": "last word",
    "metrics": {"accuracy": 0.5},
    "counts": {"examples": 2},
    "sentence": "how it was measured",
    "data_sha256": "ab",
    "dtype": "float32",
    "limit": None,
}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "small-4bit").mkdir()
    return tmp_path / "small-4bit"


def test_a_measurement_takes_its_own_place_again(bundle: Path) -> None:
    first = keep_result(bundle, RESULT)
    assert first.parent == bundle / "results"
    assert first.name.startswith("lambada_word-last_word-")
    assert keep_result(bundle, {**RESULT, "metrics": {"accuracy": 0.6}}) == first
    others = [
        {**RESULT, "limit": 3},
        {**RESULT, "data_sha256": "cd"},
        {**RESULT, "against": {"model": "y", "metrics": {}, "differences": {}}},
    ]
    assert len({first, *(keep_result(bundle, other) for other in others)}) == 4
    assert len(list((bundle / "results").iterdir())) == 4
    kept, refused = kept_results(bundle)
    assert refused == []
    assert [entry["metrics"]["accuracy"] for entry in kept if entry["limit"] is None].count(0.6) == 1
    assert all(entry["measured"].endswith("+00:00") for entry in kept)


def test_a_bundle_that_cannot_be_written_has_them_elsewhere(bundle: Path) -> None:
    (bundle / "results").write_text("a file where the folder should be")
    file = keep_result(bundle, RESULT)
    assert file == Path("results/small-4bit") / file.name
    assert kept_results(bundle)[0][0]["sentence"] == "how it was measured"
    Path("results/small-4bit").rename("away")
    Path("results/small-4bit").write_text("no folder either")
    with pytest.raises(KQuantError, match=r"neither .*small-4bit/results .* nor results/small-4bit .* can be written"):
        keep_result(bundle, RESULT)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "should hold a JSON object"),
        ("{}", "is no evaluation (it lacks or garbles task)"),
        ('{"a":' * 100_000, "nested more than 64 deep"),
        (json.dumps({**RESULT, "measured": 3}), "garbles measured)"),
        (json.dumps({**RESULT, "measured": "t", "counts": []}), "garbles counts)"),
        (json.dumps({**RESULT, "measured": "t", "counts": {"a": "1"}}), "garbles counts.a)"),
        (json.dumps({**RESULT, "measured": "t", "metrics": {"a": [1]}}), "garbles metrics.a)"),
        (json.dumps({**RESULT, "measured": "t", "metrics": {"a": float("nan")}}), "expected finite numbers"),
        (json.dumps({**RESULT, "measured": "t", "seconds": "1"}), "garbles seconds)"),
        (json.dumps({**RESULT, "measured": "t", "standard_errors": {"a": "x"}}), "garbles standard_errors.a)"),
        (json.dumps({**RESULT, "measured": "t", "against": 3}), "garbles against)"),
        (
            json.dumps({**RESULT, "measured": "t", "against": {"metrics": {}, "differences": {"a": 1}}}),
            "differences.a)",
        ),
        (json.dumps({**RESULT, "measured": "t", "x": "y" * 4_000_000}), "at most 4000000 are read"),
    ],
)
def test_files_that_hold_no_result_are_refused_by_name(bundle: Path, content: str, why: str) -> None:
    keep_result(bundle, RESULT)
    (bundle / "results" / "other.json").write_text(content)
    kept, (sentence,) = kept_results(bundle)
    assert len(kept) == 1
    assert sentence.startswith(str(bundle / "results" / "other.json"))
    assert why in sentence
    assert sentence.endswith(", so it is not shown")
    assert "\n" not in sentence


def test_a_result_says_of_which_bundle_it_is(bundle: Path) -> None:
    (bundle / "kquant.json").write_text('{"fingerprint": "abc"}')
    file = keep_result(bundle, RESULT)
    assert json.loads(file.read_text())["fingerprint"] == "abc"
    assert kept_results(bundle) == ([json.loads(file.read_text())], [])
    (bundle / "kquant.json").write_text('{"fingerprint": "another"}')
    assert kept_results(bundle) == (
        [],
        [f"{file}: is of another bundle (of fingerprint abc), so it is not shown; evaluate this one"],
    )


def test_results_of_an_earlier_kquant_are_those_of_the_bundle_they_lie_in(bundle: Path) -> None:
    """They name none; in the current folder, bundles of one name would share them."""
    entry = json.loads(keep_result(bundle, RESULT).read_text())
    del entry["fingerprint"]
    (bundle / "kquant.json").write_text('{"fingerprint": "abc"}')
    elsewhere = Path("results/small-4bit/a.json")
    elsewhere.parent.mkdir(parents=True)
    for file in (next((bundle / "results").iterdir()), elsewhere):
        file.write_text(json.dumps(entry))
    kept, refused = kept_results(bundle)
    assert kept == [entry]
    assert refused == [
        f"{elsewhere}: is of an earlier kquant, which names no bundle, so it is not shown; evaluate this one"
    ]


def test_a_result_that_is_a_link_elsewhere_is_not_read(bundle: Path, tmp_path: Path) -> None:
    file = keep_result(bundle, RESULT)
    file.rename(tmp_path / "secret.json")
    file.symlink_to(tmp_path / "secret.json")
    assert kept_results(bundle) == ([], [f"{file}: is a link that leads elsewhere, so it is not shown"])


def test_the_number_of_results_is_bounded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kquant_cli.bundle.results.MOST_FILES", 1)
    keep_result(bundle, RESULT)
    keep_result(bundle, {**RESULT, "limit": 3})
    kept, refused = kept_results(bundle)
    assert len(kept) == 1
    assert refused == [f"{bundle / 'results'}: holds 2 files, and the first 1 are read"]


def test_no_space_in_one_place_leaves_what_was_kept_there(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = keep_result(bundle, RESULT)
    before, rename = first.read_bytes(), Path.replace

    def full(part: Path, target: Path) -> Path:
        if bundle in target.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(part, target)

    monkeypatch.setattr(Path, "replace", full)
    assert keep_result(bundle, RESULT) == Path("results/small-4bit") / first.name
    assert list((bundle / "results").iterdir()) == [first]
    assert first.read_bytes() == before
