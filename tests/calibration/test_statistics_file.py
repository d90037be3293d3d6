"""The file of statistics: what is saved comes back, damage is found, and the cache measures again only when it must."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kquant_cli.calibration import InputGroup, InputStatistics, StatisticsUnavailable, load_or_collect, statistics_path
from kquant_cli.calibration.moments import load_with_fingerprint
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_writer import TensorWriter

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


@pytest.fixture
def statistics() -> InputStatistics:
    groups = (
        InputGroup(("é.q", "é.k"), torch.tensor([1.0, 1e-300, 3.0], dtype=torch.float64)),
        InputGroup(("o",), torch.tensor([0.1], dtype=torch.float64)),
    )
    return InputStatistics(groups, "random", 4096, ("a note",), ("w2",))


def same(first: InputStatistics, second: InputStatistics) -> bool:
    def parts(s: InputStatistics) -> Any:
        return [(g.members, g.second_moments.tolist()) for g in s.groups], s.source, s.tokens, s.notes, s.missing

    return parts(first) == parts(second)


def test_what_is_saved_comes_back_and_equal_statistics_give_equal_bytes(statistics: InputStatistics, tmp_path: Path):
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for file in files:
        statistics.save(file)
    loaded = InputStatistics.load(files[0])
    assert same(loaded, statistics) and loaded.groups[0].second_moments.dtype == torch.float64
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_file_changed_anywhere_is_refused(statistics: InputStatistics, tmp_path: Path):
    file = tmp_path / "s.safetensors"
    statistics.save(file)
    whole, damaged = file.read_bytes(), 0
    text = whole.index(b"__metadata__") + len('__metadata__":')
    for position in [*range(text, len(whole), 7), len(whole) - 1]:
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            assert same(InputStatistics.load(file), statistics)  # the change was in what says nothing of statistics
        except KQuantError:
            damaged += 1
    assert damaged > 50


@pytest.mark.parametrize("content", [b"", b"hello", b"{}" * 100])
def test_another_file_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(KQuantError):
        InputStatistics.load(tmp_path / "s")


def test_a_safetensors_file_of_something_else_and_no_file_are_refused(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(KQuantError, match="no statistics of kquant"):
        InputStatistics.load(tiny_llama / "model.safetensors")
    with pytest.raises(KQuantError, match="cannot read"):
        InputStatistics.load(tmp_path / "none")


def test_the_file_lies_beside_the_bundle():
    assert statistics_path(Path("bundles/opt-4bit")) == Path("bundles/opt-4bit.stats.safetensors")
    assert statistics_path(Path("a.b")) == Path("a.b.stats.safetensors")


DOUBLE = torch.float64
IMPOSSIBLE = (
    torch.ones(33, dtype=DOUBLE),
    -torch.ones(32, dtype=DOUBLE),
    torch.ones(32),
    torch.ones(4, 8, dtype=DOUBLE),
)


class Run:
    """Calls `load_or_collect` and remembers what was said and whether anything was measured."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.checkpoint, self.file = open_checkpoint(folder), file
        self.said: list[str] = []
        self.measured = False

    def __call__(self, **changes: Any) -> InputStatistics:
        self.said.clear()
        self.measured = False
        values: dict[str, Any] = {"names": NAMES, "stats": "random", "seed": 1, "fingerprint": "f", "tokens": 64}
        values |= {"device": "cpu", "file": self.file, "progress": self.watch, "say": self.said.append, **changes}
        return load_or_collect(self.checkpoint, values.pop("names"), values.pop("stats"), **values)

    def watch(self, done: int, total: int) -> None:
        self.measured = True


@pytest.fixture
def run(tiny_llama: Path, tmp_path: Path) -> Run:
    return Run(tiny_llama, statistics_path(tmp_path / "bundles" / "llama"))


def test_the_same_settings_are_measured_once(run: Run):
    first = run()
    assert run.measured and not run.said and [f.name for f in run.file.parent.iterdir()] == [run.file.name]
    second = run(names=NAMES[::-1])
    assert not run.measured and not run.said and same(first, second)


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"fingerprint": "g"}, {"tokens": 65}, {"names": NAMES[:1]}],
    ids=["seed", "fingerprint", "tokens", "names"],
)
def test_other_settings_are_measured_again_with_a_word(run: Run, change: dict[str, Any]):
    run()
    run(**change)
    assert run.measured and len(run.said) == 1 and "other settings" in run.said[0]
    run(**change)
    assert not run.measured


def test_another_text_is_measured_again(tiny_llama: Path, tmp_path: Path):
    import tiny_text_models

    folder = shutil.copytree(tiny_llama, tmp_path / "llama")
    tiny_text_models.save_tokenizer(folder)  # 320 tokens where the model has 128: the texts use the first of them
    run, text = Run(folder, tmp_path / "s.safetensors"), tmp_path / "text"
    text.write_text("0123")
    run(stats=str(text))
    assert run.measured
    run(stats=str(text))
    assert not run.measured
    text.write_text("3210")
    run(stats=str(text))
    assert run.measured


@pytest.mark.parametrize("moments", IMPOSSIBLE)
def test_moments_that_no_such_input_can_have_are_measured_again_with_a_word(run: Run, moments: torch.Tensor):
    """Though key and digest are right."""
    first = run()
    fingerprint = load_with_fingerprint(run.file)[1]
    others = tuple(InputGroup(group.members, moments) for group in first.groups)
    InputStatistics(others, first.source, first.tokens).save(run.file, fingerprint)
    assert same(run(), first)
    assert run.measured
    assert len(run.said) == 1
    assert "measured again" in run.said[0]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_plain_file_is_in_the_way(run: Run, make: Any):
    run.file.parent.mkdir()
    make(run.file)
    with pytest.raises(KQuantError, match="is in the way, and is no plain file: move it"):
        run()
    assert not run.measured


def test_a_damaged_file_is_measured_again_with_a_word(run: Run):
    first = run()
    run.file.write_bytes(run.file.read_bytes()[:-1])
    assert same(run(), first)
    assert run.measured and len(run.said) == 1 and "measured again" in run.said[0] and "truncated" in run.said[0]
    run()
    assert not run.measured and not run.said


def test_a_file_that_cannot_be_written_is_a_sentence_and_leaves_nothing(run: Run, tmp_path: Path):
    (tmp_path / "bundles").write_text("a file in the way of the folder")
    with pytest.raises(KQuantError, match="cannot be written"):
        run()
    assert [path.name for path in tmp_path.iterdir()] == ["bundles"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_no_space_is_a_sentence_and_leaves_the_old_file(run: Run, step: str, monkeypatch: pytest.MonkeyPatch):
    run()
    before = run.file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr({"write": TensorWriter, "fsync": os, "replace": Path}[step], step, full)
    with pytest.raises(KQuantError, match=r"cannot be written \(No space left on device\): choose another --output"):
        run(seed=2)
    assert [(path, path.read_bytes()) for path in run.file.parent.iterdir()] == [(run.file, before)]


def test_what_is_unavailable_leaves_no_file(run: Run, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(StatisticsUnavailable):
        run(names=["model.embed_tokens"])
    assert not run.file.exists()
