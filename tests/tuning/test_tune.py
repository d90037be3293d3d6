"""Tuning: lower divergence on text that it has not seen, interruptions, and what is done where it is of no use."""

import math

import pytest
import tiny_models
import torch
from torch import nn

from kquant_cli.checkpoint import open_checkpoint, select_matrices
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import Metric, encode_in_metric
from kquant_cli.hf.loading import load_dense
from kquant_cli.tuning import tune as room
from kquant_cli.tuning.budget import Budget
from kquant_cli.tuning.student import TunedLinear, right_basis
from kquant_cli.tuning.tune import Tuning

CPU = torch.device("cpu")
NORMS = ("model.norm.weight", "model.layers.1.input_layernorm.weight")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(room, "TOKENS", 256)
    monkeypatch.setattr(room, "computed_dtype", lambda device: torch.float32)


@pytest.fixture
def made(tiny_llama):
    """made(): a tuning of the tiny model and its student's layers, the same each time."""
    checkpoint = open_checkpoint(tiny_llama)
    matrices = [m for m in select_matrices(checkpoint).matrices if "mlp" in m.name]
    ids = tiny_models.tokens(24, 32)

    def make(dtype=torch.float32):
        model = load_dense(tiny_llama, device="cpu", dtype=torch.float32).model.requires_grad_(False)
        parameters = dict(model.named_parameters())
        tuning = Tuning(model, {name: (parameters[name], dtype) for name in NORMS}, ids, CPU)
        layers = {}
        for matrix in matrices:
            rows, columns = matrix.shape
            half, weight = torch.eye(columns), parameters[matrix.tensor]
            config = EncoderConfig(bits=2, effort="fast")
            (encoded,) = encode_in_metric([weight], [Metric(half, half, torch.ones(rows))], config)
            layers[matrix.name] = TunedLinear(
                encoded, right_basis(encoded.layout.frame.right_u, columns, CPU, torch.float32), None
            )
            model.set_submodule(matrix.name, layers[matrix.name])
        return tuning, layers

    return make


def run(made, steps=6, *, rate=2e-3, state=None, **options):
    tuning, layers = made(**options)
    return tuning.run(layers, Budget(0, steps), rate=rate, seed=0, state=state), tuning, layers


def divergence(model, ids, dense):
    with torch.no_grad():
        q = model(ids).logits.double().log_softmax(-1)
    return float((dense.exp() * (dense - q)).sum(-1).mean())


def test_the_divergence_on_held_out_text_falls_and_is_that_of_what_is_stored(made, tiny_llama):
    found, tuning, layers = run(made, 12)
    before, after = found.divergence
    assert after < 0.98 * before
    assert found.steps == 12
    assert found.tokens == 12 * 256
    dense_model = load_dense(tiny_llama, device="cpu", dtype=torch.float32).model
    ids = tuning.ids[:: room.HELD_OUT]
    with torch.no_grad():
        dense = dense_model(ids).logits.double().log_softmax(-1)
    assert divergence(tuning.model, ids, dense) == pytest.approx(after, rel=1e-2)
    untuned, untuned_layers = made()
    assert divergence(untuned.model, ids, dense) == pytest.approx(before, rel=1e-2)
    for name, (scale, col_scale) in found.scales.items():
        assert (scale.dtype, col_scale.dtype) == (torch.float16, torch.float16)
        assert scale.shape == (len(layers[name].held), 1)
        assert not torch.equal(scale.squeeze(1).float(), untuned_layers[name].scale)
        torch.testing.assert_close(scale.squeeze(1).float(), layers[name].scale, rtol=1e-6, atol=0)
    assert set(found.vectors) == set(NORMS)
    assert found.to_dict()["held_out_divergence"] == {"before": before, "after": after}
    assert found.tensors().keys() == {
        *NORMS, *(f"{name}.{part}" for name in layers for part in ("weight_scale", "weight_col_scale"))
    }  # fmt: skip


def test_norms_are_rounded_to_what_is_stored_of_them(made):
    found, _, _ = run(made, dtype=torch.bfloat16)
    for tensor in found.vectors.values():
        assert torch.equal(tensor, tensor.bfloat16().float())


def assert_same(first, second):
    assert first.divergence == second.divergence
    expected = second.tensors()
    assert first.tensors().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in first.tensors().items())


class StopError(Exception):
    """In the middle."""


@pytest.fixture
def stopped(made, tmp_path, monkeypatch):
    """The file of a tuning of six steps that was stopped in the fourth."""

    def stop(step, total):
        if step == 4:
            raise StopError

    tuning, layers = made()
    with monkeypatch.context() as patch:
        patch.setattr(room, "SAVED_EVERY", -1.0)
        with pytest.raises(StopError):
            tuning.run(layers, Budget(0, 6), rate=2e-3, seed=0, state=tmp_path / "state", progress=stop)
    return tmp_path / "state"


def test_a_stopped_tuning_goes_on_to_the_same(made, stopped):
    told = []
    tuning, layers = made()
    found = tuning.run(
        layers, Budget(0, 6), rate=2e-3, seed=0, state=stopped, progress=lambda step, total: told.append((step, total))
    )
    assert told == [(4, 6), (5, 6), (6, 6)]
    assert_same(found, run(made)[0])


def _cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def _empty(file):
    file.write_bytes(b"")


def _others(file):
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    tensors["0.value"] = torch.ones(3)
    save_file(tensors, file, {"step": "4", "total": "6"})


def _not_finite(file):
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    tensors["1.exp_avg"][0] = float("nan")
    save_file(tensors, file, {"step": "4", "total": "6"})


def _altered(file):
    """A value and a step, with all that was written beside."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    tensors["0.value"][0] += 1
    with safe_open(file, framework="pt") as opened:
        save_file(tensors, file, opened.metadata())


def _at_another_step(file):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, framework="pt") as opened:
        save_file(load_file(file), file, {**opened.metadata(), "step": "4"})


@pytest.mark.parametrize("damage", [_cut, _empty, _others, _not_finite, _altered, _at_another_step])
def test_a_damaged_state_is_not_taken_up(made, stopped, damage):
    damage(stopped)
    said = []
    tuning, layers = made()
    found = tuning.run(layers, Budget(0, 6), rate=2e-3, seed=0, state=stopped, say=said.append)
    assert_same(found, run(made)[0])
    (sentence,) = said
    assert sentence.startswith(f"what was saved of the tuning in {stopped} is damaged, or of another run")


@pytest.mark.parametrize("other", [{"rate": 1e-3}, {"seed": 1}, {"budget": Budget(0, 7)}])
def test_the_state_of_another_tuning_is_not_taken_up(made, stopped, other):
    settings = {"budget": Budget(0, 6), "rate": 2e-3, "seed": 0, **other}
    told, (tuning, layers) = [], made()
    tuning.run(layers, settings.pop("budget"), **settings, state=stopped, progress=lambda step, _: told.append(step))
    assert told[0] == 1


def test_parameters_that_no_gradient_reaches_are_saved_too(made, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "SAVED_EVERY", -1.0)
    tuning, layers = made()
    unused = nn.Parameter(torch.ones(3))
    tuning.model.register_parameter("unused", unused)
    tuning.vectors["unused"], tuning.dtypes["unused"] = unused, torch.float32
    found = tuning.run(layers, Budget(0, 2), rate=2e-3, seed=0, state=tmp_path / "state")
    assert torch.equal(found.vectors["unused"], torch.ones(3))
    assert (tmp_path / "state").exists()


def test_a_loss_that_is_not_finite_ends_it(made, monkeypatch):
    tuning, layers = made()
    original, losses = Tuning._gradient, []

    def gradient(self, numbers):
        losses.append(original(self, numbers))
        return losses[-1] if len(losses) < 4 else math.nan

    monkeypatch.setattr(Tuning, "_gradient", gradient)
    found = tuning.run(layers, Budget(0, 9), rate=2e-3, seed=0)
    assert found.steps == 3
    assert found.notes[0] == "tuning ended at step 4, whose loss was not finite"


@pytest.mark.parametrize("rate", [30.0, 1e30])
def test_what_does_not_help_is_left_out(made, rate):
    """A rate at which scales are lost, or numbers."""
    found, tuning, layers = run(made, 3, rate=rate)
    assert (found.scales, found.vectors, found.tensors()) == ({}, {}, {})
    assert found.notes[-1].startswith("tuning did not help on held-out text (")
    fresh, untouched = made()
    for name, layer in layers.items():
        assert torch.equal(layer.scale, untouched[name].scale)
        assert torch.equal(layer.col_scale, untouched[name].col_scale)
    for name in NORMS:
        assert torch.equal(tuning.vectors[name], fresh.vectors[name])
    after = found.to_dict()["held_out_divergence"]["after"]
    assert after is None or math.isfinite(after)  # what JSON can hold


def test_every_sequence_is_seen_once_a_pass_and_none_that_is_held_out():
    batch = room._shuffled(range(3, 20), 5)
    seen = [number for step in range(17) for number in batch(step, 4)]
    passes = [seen[begin : begin + 17] for begin in range(0, 68, 17)]
    assert all(sorted(one) == list(range(3, 20)) for one in passes)
    assert passes[0] != passes[1]
    assert batch(3, 4) == seen[12:16]


def test_blocks_that_are_not_called_are_none_of_the_chain(tiny_llama):
    model = load_dense(tiny_llama, device="cpu", dtype=torch.float32).model.requires_grad_(False)
    model.spare = torch.nn.ModuleList([torch.nn.Linear(2, 2)])  # numbered, after all others, and unused
    ids = tiny_models.tokens(4, 16)
    tuning = Tuning(model, {}, ids, CPU)
    assert tuning._mean(range(4)) == pytest.approx(0.0, abs=1e-6)
