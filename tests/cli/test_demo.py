"""The tour on the embedded models, and what the language model is."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from kquant_cli.bundle import kept_results
from kquant_cli.demo import demo_model_path, demo_text_path


def test_demo_is_the_tour_and_bundles_are_a_little_worse_than_the_models(kquant, tmp_path):
    result = kquant("demo", "--bits", 4, "-o", tmp_path / "b")
    assert result.code == 0
    for command in ("$ kquant compress", "$ kquant eval", "$ kquant inspect"):
        assert command in result.out
    assert "24 inputs" not in result.out  # query, key and value projections share theirs
    assert "the model's own text, 8,192 tokens" in result.out
    assert "--task sst2" in result.out
    assert "same label" in result.out
    (bundle,), _ = kept_results(tmp_path / "b")
    assert bundle["task"] == "demo"
    dense = float(re.search(r"opt-4m \(dense\) │ +([\d.]+)", result.out)[1])
    assert dense < 200
    assert 0.99 < bundle["perplexity"] / dense < 1.05
    (classified,), _ = kept_results(tmp_path / "b-sst2")
    assert f"{classified['against']['metrics']['accuracy']:.4f}" in result.out
    again = kquant("demo", "--bits", 4, "-o", tmp_path / "b")
    assert again.code == 0
    assert again.err.count("nothing to do") == 2


def test_what_cannot_be_is_refused_before_any_work(kquant, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("x")
    result = kquant("demo", "-o", tmp_path / "b")
    assert (result.code, result.out) == (2, "")
    assert "exists and is not a kquant bundle" in result.err
    result = kquant("demo", "--bits", 9, "-o", tmp_path / "c")
    assert (result.code, result.out) == (2, "")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_embedded_model_and_text():
    folder = demo_model_path()
    tensors = load_file(folder / "model.safetensors")
    size = sum(t.numel() for t in tensors.values())
    assert 3e6 < size < 6e6
    assert (folder / "model.safetensors").stat().st_size <= 16 * 2**20
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert len({tuple(t.shape) for name, t in tensors.items() if name.endswith("fc1.weight") or "fc2" in name}) > 1
    text = demo_text_path().read_text(encoding="utf-8")
    assert len(text.encode()) > 30_000
    paragraphs = [p for p in text.split("\n") if len(p) > 80]
    assert len(paragraphs) == len(set(paragraphs))
    card = Path(folder / "README.md").read_text(encoding="utf-8")
    assert "Perplexity there" in card
