"""Moments block by block are those of one plain backward pass of the whole model, in float64, with hooks."""

from dataclasses import replace

import pytest
import tiny_models
import tiny_text_models
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from kquant_cli.calibration import gradient_moments
from kquant_cli.calibration.gradient_moments import GradientMoments
from kquant_cli.calibration.unavailable import StatisticsUnavailable
from kquant_cli.checkpoint import open_checkpoint, select_matrices
from kquant_cli.errors import KQuantError
from kquant_cli.hf import blocks as rooms_blocks
from kquant_cli.hf.loading import load_dense

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Products in float32, whatever this processor is good at."""
    monkeypatch.setattr(rooms_blocks, "multiplies_bfloat16", lambda: False)


def source(arch, folder, **overrides):
    return tiny_text_models.make_mpt(folder) if arch == "mpt" else tiny_models.make(arch, folder, **overrides)


def loaded(folder):
    return load_dense(folder, device="cpu", dtype=torch.float32).model.requires_grad_(False)


def all_metrics(moments, checkpoint, matrices):
    found, reasons = {}, {}
    for metrics, lost in moments.backward(matrices, checkpoint.tied):
        assert not found.keys() & metrics.keys()
        found |= metrics
        reasons |= lost
    return found, reasons


def plain(model, ids):
    """By name of each linear layer: sum_t w_t x_t x_t^T, w_t = mean_i g_ti^2, and sum_t g_ti^2 (out_features,)."""
    model = model.double().requires_grad_(True)
    seen = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):

            def keep(_module, args, output, name=name):
                output.retain_grad()
                seen.setdefault(name, []).append((args[0].detach(), output))

            handles.append(module.register_forward_hook(keep))
    logits = model(input_ids=ids, use_cache=False).logits
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    loss.backward()
    for handle in handles:
        handle.remove()
    sums = {}
    for name, calls in seen.items():
        x = torch.cat([x.reshape(-1, x.shape[-1]) for x, _ in calls])
        g = torch.cat([y.grad.reshape(-1, y.shape[-1]) for _, y in calls]).square()
        sums[name] = x.T @ (g.mean(dim=1, keepdim=True) * x), g.sum(dim=0)
    return sums, float(loss.detach())


def assert_near(found, expected, tolerance=1e-4):
    assert float((found.double() - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize(
    ("arch", "overrides"),
    [
        ("llama", {}),
        ("opt", {}),
        ("opt_projected", {}),
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma", {}),
        ("mpt", {}),  # its blocks give tuples
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ],
)
def test_the_moments_are_those_of_a_plain_backward_pass(arch, overrides, tmp_path, monkeypatch):
    folder = source(arch, tmp_path / "source", **overrides)
    checkpoint = open_checkpoint(folder)
    matrices = select_matrices(checkpoint).matrices
    ids = tiny_models.tokens(6, 32)
    monkeypatch.setitem(gradient_moments.LOGITS, "cpu", 1)  # a sequence at a time, every other for the second half
    moments = GradientMoments(loaded(folder), ids, CPU)
    told = []
    mean = moments.forward(lambda *done: told.append(done))
    assert told == [(n + 1, 6) for n in range(6)]
    found, reasons = all_metrics(moments, checkpoint, matrices)
    assert reasons == {}
    assert set(found) == {matrix.name for matrix in matrices}
    halves = [plain(loaded(folder), ids[half::2]) for half in (0, 1)]
    assert mean == pytest.approx(sum(loss for _, loss in halves) / (6 * 31), rel=1e-5)
    for matrix in matrices:
        metric = found[matrix.name]
        assert (len(metric.outputs), len(metric.first)) == matrix.shape
        name = matrix.name if matrix.name in halves[0][0] else f"model.{matrix.name}"
        (first, of_first), (second, of_second) = (sums[name] for sums, _ in halves)
        assert_near(metric.first, first)
        assert_near(metric.second, second)
        assert_near(metric.inputs, first + second)
        assert_near(metric.outputs, of_first + of_second)
    again, _ = all_metrics(moments, checkpoint, matrices[:2])  # as sensitivities, and then the encoding, ask
    assert set(again) == {matrix.name for matrix in matrices[:2]}
    assert torch.equal(again[matrices[0].name].first, found[matrices[0].name].first)


def test_chunks_change_nothing_but_the_halves(tiny_llama, monkeypatch):
    checkpoint, ids = open_checkpoint(tiny_llama), tiny_models.tokens(6, 32)
    matrices, found = select_matrices(checkpoint).matrices, []
    for entries in (1, 1 << 27):
        monkeypatch.setitem(gradient_moments.LOGITS, "cpu", entries)
        moments = GradientMoments(loaded(tiny_llama), ids, CPU)
        moments.forward()
        found.append(all_metrics(moments, checkpoint, matrices)[0])
    for name, metric in found[0].items():
        assert_near(metric.inputs, found[1][name].inputs.double())
        assert_near(metric.outputs, found[1][name].outputs.double())
        assert not torch.allclose(metric.first, found[1][name].first, rtol=1e-3)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt", "mpt"])
def test_in_bfloat16_they_are_nearly_the_same(arch, tmp_path, monkeypatch):
    folder = source(arch, tmp_path / "source")
    checkpoint, ids = open_checkpoint(folder), tiny_models.tokens(6, 32)
    matrices, found = select_matrices(checkpoint).matrices, []
    for faster in (False, True):
        monkeypatch.setattr(rooms_blocks, "multiplies_bfloat16", lambda faster=faster: faster)
        moments = GradientMoments(loaded(folder), ids, CPU)
        moments.forward()
        found.append(all_metrics(moments, checkpoint, matrices)[0])
    for name, metric in found[0].items():
        other = found[1][name]
        assert other.first.dtype == torch.float32
        assert not torch.equal(metric.first, other.first)
        assert float((metric.inputs - other.inputs).norm()) < 0.1 * float(metric.inputs.norm())
        assert float((metric.outputs - other.outputs).norm()) < 0.1 * float(metric.outputs.norm())


def test_parts_of_fused_experts_have_none(tmp_path):
    """transformers keeps a block's experts as one tensor, in a module whose output is not theirs."""
    folder = tiny_models.make("mixtral", tmp_path / "source")
    checkpoint = open_checkpoint(folder)
    matrices = select_matrices(checkpoint).matrices
    moments = GradientMoments(loaded(folder), tiny_models.tokens(6, 32), CPU)
    moments.forward()
    found, reasons = all_metrics(moments, checkpoint, matrices)
    assert set(found) == {matrix.name for matrix in matrices if "self_attn" in matrix.name}
    assert reasons == {}


def test_what_too_few_tokens_reach_has_none_and_says_why(tiny_llama, tmp_path):
    checkpoint = open_checkpoint(tiny_llama)
    matrices = select_matrices(checkpoint).matrices
    moments = GradientMoments(loaded(tiny_llama), tiny_models.tokens(4, 31), CPU)
    moments.forward()
    found, reasons = all_metrics(moments, checkpoint, matrices)
    assert found == {}
    assert set(reasons.values()) == {"fewer than 128 tokens were seen to reach them"}
    assert set(reasons) == {matrix.name for matrix in matrices}


def test_what_no_gradient_reaches_has_none_and_says_why(tmp_path):
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    model.save_pretrained(tmp_path / "source")
    checkpoint = open_checkpoint(tmp_path / "source")
    matrices = select_matrices(checkpoint).matrices
    moments = GradientMoments(loaded(tmp_path / "source"), tiny_models.tokens(6, 32), CPU)
    moments.forward()
    found, reasons = all_metrics(moments, checkpoint, matrices)
    silent = {f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up")}
    assert reasons == dict.fromkeys(silent, "no gradient or no input reached them")
    assert set(found) == {matrix.name for matrix in matrices} - silent


class Twice(nn.Module):
    """The same block again."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config
        self.get_input_embeddings = model.get_input_embeddings

    def forward(self, input_ids, **arguments):
        self.model(input_ids=input_ids, **arguments)
        return self.model(input_ids=input_ids, **arguments)


def test_blocks_called_twice_are_no_chain(tiny_llama):
    with pytest.raises(StatisticsUnavailable, match=r"calls model\.model\.layers\.0 more than once"):
        GradientMoments(Twice(loaded(tiny_llama)), tiny_models.tokens(4, 8), CPU).forward()


def test_a_model_that_works_between_its_blocks_is_no_chain(tiny_llama):
    model = loaded(tiny_llama)
    model.model.layers[0].register_forward_hook(lambda module, args, output: 1.5 * output)
    moments = GradientMoments(model, tiny_models.tokens(4, 8), CPU)
    moments.forward()  # a hook of the block is part of the block
    model = loaded(tiny_llama)
    model.model.layers[1].register_forward_pre_hook(lambda module, args: (1.5 * args[0], *args[1:]))
    with pytest.raises(StatisticsUnavailable, match=r"changes hidden states before model\.layers\.1: no chain"):
        GradientMoments(model, tiny_models.tokens(4, 8), CPU).forward()


def test_a_model_without_numbered_blocks_is_no_chain(tiny_llama):
    model = loaded(tiny_llama)
    model.model.layers = nn.ModuleList()
    with pytest.raises(StatisticsUnavailable, match="has no fixed order of numbered blocks"):
        GradientMoments(model, tiny_models.tokens(4, 8), CPU).forward()


def test_what_transformers_cannot_run_is_a_sentence(tiny_llama):
    model = loaded(tiny_llama)
    model.model.norm.forward = lambda hidden: 1 / [].index(hidden)
    with pytest.raises(StatisticsUnavailable, match=r"cannot be run by transformers \(ValueError: .*\)"):
        GradientMoments(model, tiny_models.tokens(4, 8), CPU).forward()


def test_a_cross_entropy_that_is_not_finite_is_a_sentence(tiny_llama):
    model = loaded(tiny_llama)
    model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(KQuantError, match=r"a cross-entropy that is not finite .* give --calibration random or none$"):
        GradientMoments(model, tiny_models.tokens(4, 8), CPU).forward()


def test_the_loss_of_a_metric_is_its_formula():
    draw = torch.Generator().manual_seed(0)
    x, weight, error = (torch.randn(n, 8, generator=draw) for n in (50, 5, 5))
    metric = gradient_moments.Metric(x[:20].T @ x[:20], x[20:].T @ x[20:], torch.rand(5, generator=draw))

    def cost(e):
        return sum(float(metric.outputs[i]) * float((x.double() @ e[i].double()).square().sum()) for i in range(5))

    assert metric.loss(error, weight) == pytest.approx(cost(error) / cost(weight), rel=1e-5)
    nothing = replace(metric, outputs=torch.zeros(5))
    assert nothing.loss(error, weight) == 0
    assert metric.loss(error, torch.zeros(5, 8)) == 0
