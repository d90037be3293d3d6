"""Sensitivities against plain computations: one weight changed by hand, whole passes, KL from float64 log-softmaxes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import tiny_text_models
import torch
import transformers
from torch.nn.functional import log_softmax

from kquant_cli.calibration import sensitivity
from kquant_cli.calibration.noise import noise
from kquant_cli.calibration.sensitivity import DRAWS, EPS, measure_sensitivity
from kquant_cli.checkpoint import Checkpoint, Matrix, open_checkpoint, select_matrices
from kquant_cli.errors import KQuantError

SEED = 5


def opened(folder: Path, include: tuple[str, ...] = ()) -> tuple[Checkpoint, tuple[Matrix, ...]]:
    checkpoint = open_checkpoint(folder)
    return checkpoint, select_matrices(checkpoint, include).matrices


def measure(folder: Path, source: str = "data-free", **options: object) -> dict[str, float]:
    checkpoint, matrices = opened(folder)
    return measure_sensitivity(checkpoint, matrices, source, seed=SEED, device="cpu", **options)  # type: ignore[arg-type]


def by_hand(model: torch.nn.Module, matrix: Matrix, parts: list[torch.Tensor], scale: torch.Tensor | None) -> float:
    """KL(P || P') / eps, mean over parts and tokens, with the same noise; the model's weight is given back."""
    names = dict(model.named_parameters())
    weight = next(p for n, p in names.items() if n == matrix.tensor or n.endswith(f".{matrix.tensor}"))
    own, found = weight.detach().clone(), []
    for draw, ids in enumerate(parts):
        error = noise(own.T if matrix.transposed else own, EPS, scale, f"{SEED} {matrix.name} {draw}")
        with torch.no_grad():
            before = log_softmax(model(input_ids=ids).logits.double(), -1)
            weight += error.T if matrix.transposed else error
            after = log_softmax(model(input_ids=ids).logits.double(), -1)
            weight.copy_(own)
        found.append(float((before.exp() * (before - after)).sum(-1).mean()) / EPS)
    return sum(found) / len(found)


def used_tokens(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The token ids of each part of the measurements to come."""
    parts: list[torch.Tensor] = []
    real = sensitivity.model_inputs

    def spy(*args: object) -> list[dict[str, torch.Tensor]]:
        inputs = real(*args)  # type: ignore[arg-type]
        parts[:] = [part["input_ids"] for part in inputs]
        return inputs

    monkeypatch.setattr(sensitivity, "model_inputs", spy)
    return parts


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "channel-scaled"])
@pytest.mark.parametrize("arch", ["opt", "opt_projected", "llama", "gpt2", "gpt_neox", "bert", "roberta"])
def test_equals_a_plain_computation(arch: str, scaled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.make(arch, tmp_path / arch)
    _, matrices = opened(folder)
    draw = torch.Generator().manual_seed(1)
    scales = {m.name: torch.rand(m.shape[1], generator=draw) + 0.2 for m in matrices if scaled}
    parts = used_tokens(monkeypatch)
    found = measure(folder, tokens=128, channel_scales=scales)
    assert list(found) == [m.name for m in matrices]
    assert len(parts) == DRAWS
    assert sum(part.numel() for part in parts) == 128
    model = tiny_models.load(arch, folder)
    for matrix in matrices:
        assert found[matrix.name] == pytest.approx(by_hand(model, matrix, parts, scales.get(matrix.name)), rel=0.01)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_is_linear_in_the_error(arch: str, tmp_path: Path) -> None:
    folder = tiny_models.make(arch, tmp_path / arch)
    small, usual, large = (measure(folder, tokens=128, eps=eps) for eps in (EPS / 4, EPS, 4 * EPS))
    for name, value in usual.items():
        assert small[name] == pytest.approx(value, rel=0.1)
        assert large[name] == pytest.approx(value, rel=0.1)


def test_the_model_is_restored_bit_for_bit(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    real = sensitivity.load_dense

    def spy(*args: object, **options: object) -> object:
        kept.append(real(*args, **options))  # type: ignore[arg-type]
        return kept[-1]

    monkeypatch.setattr(sensitivity, "load_dense", spy)
    measure(tiny_llama)
    before = tiny_models.load("llama", tiny_llama).state_dict()
    after = kept[0].model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_weight_is_restored_when_the_pass_fails() -> None:
    weight = torch.randn(3, 4)
    own = weight.clone()
    with pytest.raises(RuntimeError, match="broken"), sensitivity.perturbed(weight, torch.randn(3, 4)):
        assert not torch.equal(weight, own)
        raise RuntimeError("broken")
    assert torch.equal(weight, own)


def test_the_same_again_whatever_else_is_measured(tiny_llama: Path) -> None:
    checkpoint, matrices = opened(tiny_llama)
    told: list[tuple[str, int, int]] = []
    first = measure(tiny_llama, progress=lambda *state: told.append(state))
    some = measure_sensitivity(checkpoint, matrices[3:5], "data-free", seed=SEED, device="cpu")
    assert some == {m.name: first[m.name] for m in matrices[3:5]}
    assert told == [(m.name, i, len(matrices)) for i, m in enumerate(matrices, start=1)]
    other = measure_sensitivity(checkpoint, matrices[3:5], "data-free", seed=SEED + 1, device="cpu")
    assert other.keys() == some.keys()
    assert other != some


def test_on_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_text_models.make(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text(tiny_text_models.text(), encoding="utf-8")
    parts = used_tokens(monkeypatch)
    found = measure(folder, str(text), tokens=128)
    assert min(found.values()) > 0
    ids = torch.cat([part.flatten() for part in parts])
    assert ids[0] == 1  # as the tokenizer begins a text
    assert len(set(ids.tolist())) > 20


def test_an_embedding_tied_to_the_head_and_a_head_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of all blocks: the whole pass is computed."""
    for tied, name in ((True, "model.embed_tokens"), (False, "lm_head")):
        folder = tiny_models.make("llama", tmp_path / name, tie_word_embeddings=tied)
        checkpoint, matrices = opened(folder, (f"{name}.weight",))
        parts = used_tokens(monkeypatch)
        found = measure_sensitivity(checkpoint, matrices, "data-free", seed=SEED, device="cpu", tokens=64)
        matrix = next(m for m in matrices if m.name == name)
        model = tiny_models.load("llama", folder)
        assert found[name] == pytest.approx(by_hand(model, matrix, parts, None), rel=0.01)


def test_fused_experts_are_measured_one_by_one(tmp_path: Path) -> None:
    folder = tiny_models.make("mixtral", tmp_path / "mixtral")
    notes: list[str] = []
    found = measure(folder, say=notes.append)
    experts = [value for name, value in found.items() if ".experts." in name]
    assert len(experts) == len(set(experts)) == 2 * 4 * 3
    assert notes == []


def test_a_matrix_without_effect_or_place_gets_the_mean_of_the_others(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sensitivity.find_matrices
    dead = torch.randn(32, 32)

    def lose(*args: object) -> dict[str, object]:
        places = real(*args)  # type: ignore[arg-type]
        q, k = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
        return {**places, q: None, k: sensitivity.MatrixView(dead, frozenset({"model.layers.0"}))}

    monkeypatch.setattr(sensitivity, "find_matrices", lose)
    notes: list[str] = []
    found = list(measure(tiny_llama, say=notes.append).items())
    lost = {name: value for name, value in found if name.startswith("model.layers.0.self_attn.") and name[-6] in "qk"}
    others = torch.tensor([value for name, value in found if name not in lost], dtype=torch.float64)
    assert len(lost) == 2
    assert all(value == pytest.approx(float(others.log().mean().exp())) for value in lost.values())
    assert len(notes) == 2
    assert "1 matrices are taken as the others' mean, since transformers does not load them" in notes[0]
    assert "since no token reached them: model.layers.0.self_attn.k_proj" in notes[1]


def test_a_zero_matrix_has_the_least_sensitivity(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
    model.save_pretrained(folder)
    found = measure(folder)
    assert 0 < found["model.layers.1.mlp.up_proj"] <= 1e-8 * max(found.values())


@pytest.mark.parametrize("arch", ["bert_classifier", "roberta_classifier"])
def test_classifiers_are_measured_on_short_sequences(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.make(arch, tmp_path / arch)
    parts = used_tokens(monkeypatch)
    found = measure(folder, tokens=512)
    assert {tuple(part.shape) for part in parts} == {(4, 32)}
    assert min(found.values()) > 0


@pytest.mark.parametrize("head", ["none", "regression"])
def test_without_distributions_the_change_of_the_output_stands_in(head: str, tmp_path: Path) -> None:
    model = tiny_models.build("bert_classifier", num_labels=1)
    (model if head == "regression" else model.bert).save_pretrained(tmp_path / "model")
    checkpoint, _ = opened(tmp_path / "model")
    assert checkpoint.config["architectures"] == [type(model if head == "regression" else model.bert).__name__]
    small, usual = (measure(tmp_path / "model", eps=eps) for eps in (EPS / 4, EPS))
    for name, value in usual.items():
        assert small[name] == pytest.approx(value, rel=0.1)


def test_a_checkpoint_that_names_no_architecture_is_taken_for_a_causal_model(tmp_path: Path) -> None:
    folder = tiny_models.make("llama", tmp_path / "model")
    named = measure(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"LlamaForCausalLM"', ""))
    assert measure(folder) == named


def test_texts_that_are_of_no_use_are_refused(tmp_path: Path) -> None:
    folder = tiny_text_models.make(tmp_path / "model")
    text = tmp_path / "text.txt"
    with pytest.raises(KQuantError, match=r"text\.txt cannot be read .*expected a UTF-8 text file, .* or 'data-free'"):
        measure(folder, str(text))
    text.write_text("ka shin", encoding="utf-8")
    with pytest.raises(KQuantError, match=r"text\.txt gives \d+ tokens, expected 496 or more .*: give a longer text"):
        measure(folder, str(text))
    text.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KQuantError, match="is not UTF-8 text"):
        measure(folder, str(text))
    text.write_text(tiny_text_models.text(), encoding="utf-8")
    with pytest.raises(KQuantError, match="no tokenizer"):
        measure(tiny_models.make("llama", tmp_path / "bare"), str(text))
    small = tiny_models.make("opt", tmp_path / "small")
    tiny_text_models.save_tokenizer(small)
    with pytest.raises(KQuantError, match=r"expected ids below the model's 128"):
        measure(small, str(text))


def test_models_whose_numbers_overflow_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e38)
    model.save_pretrained(folder)
    with pytest.raises(KQuantError, match="computes numbers that are not finite"):
        measure(folder)


class OneByOne(torch.nn.Module):
    """The logits of a batch, each sequence by itself."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.cat([self.inner(input_ids=row[None]).logits for row in input_ids]))


def test_a_decoder_that_classifies_needs_no_padding_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers refuses a batch of such a model, but every sequence of it has a last token."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**tiny_models.GROUPED, "num_labels": 3, "pad_token_id": None})
    model = transformers.LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    parts, (_, matrices) = used_tokens(monkeypatch), opened(tmp_path)
    found = measure(tmp_path, tokens=256)
    assert all(len(part) > 1 for part in parts)
    for matrix in matrices[::5]:
        assert found[matrix.name] == pytest.approx(by_hand(OneByOne(model), matrix, parts, None), rel=0.01)
