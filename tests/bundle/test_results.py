"""Evaluations beside a bundle: where they go, what takes whose place, and what is passed over."""

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
    kept = kept_results(bundle)
    assert [entry["metrics"]["accuracy"] for entry in kept if entry["limit"] is None].count(0.6) == 1
    assert all(entry["measured"].endswith("+00:00") for entry in kept)


def test_a_bundle_that_cannot_be_written_has_them_elsewhere(bundle: Path) -> None:
    (bundle / "results").write_text("a file where the folder should be")
    file = keep_result(bundle, RESULT)
    assert file == Path("results/small-4bit") / file.name
    assert kept_results(bundle)[0]["sentence"] == "how it was measured"
    Path("results/small-4bit").rename("away")
    Path("results/small-4bit").write_text("no folder either")
    with pytest.raises(KQuantError, match=r"neither .*small-4bit/results .* nor results/small-4bit .* can be written"):
        keep_result(bundle, RESULT)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"a":' * 100_000,
        json.dumps({**RESULT, "measured": 3}),
        json.dumps({**RESULT, "measured": "t", "counts": []}),
    ],
)
def test_files_that_hold_no_result_are_passed_over(bundle: Path, content: str) -> None:
    keep_result(bundle, RESULT)
    (bundle / "results" / "other.json").write_text(content)
    assert len(kept_results(bundle)) == 1


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
