"""Text that a model writes: seeded, as long as the model can, by its own distributions, with a cache that grows."""

import pytest
import tiny_models
import torch
import transformers

from kquant_cli.calibration import own_text
from kquant_cli.calibration.own_text import growing_cache, write_text
from kquant_cli.errors import KQuantError

CPU = torch.device("cpu")


def write(model, tokens=600, seed=0, **options):
    return write_text(model, tokens, seed=seed, device=CPU, **options)


@pytest.fixture(scope="module")
def llama():
    return tiny_models.build("llama").requires_grad_(False)


def test_the_same_seed_writes_the_same_and_another_something_else(llama):
    first = write(llama)
    assert torch.equal(first, write(llama))
    assert not torch.equal(first, write(llama, seed=1))
    assert first.dtype == torch.int64
    assert not first.is_inference()  # tokens of one sequence would be no use for a backward pass
    assert int(first.min()) >= 0 and int(first.max()) < tiny_models.VOCABULARY
    assert not set(first[:, 0].tolist()) & {0, 1, 2}  # no special token is drawn to begin with


@pytest.mark.parametrize("arch", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize(("tokens", "shape"), [(600, (10, 64)), (100, (2, 50)), (7, (3, 3)), (1, (2, 2))])
def test_sequences_are_equal_two_or_more_and_no_longer_than_the_model_takes(arch, tokens, shape):
    assert write(tiny_models.build(arch), tokens).shape == shape


def test_sequences_end_where_transformers_has_no_bound(monkeypatch):
    monkeypatch.setattr(own_text, "longest_input", lambda model: None)
    monkeypatch.setattr(own_text, "LENGTH", 24)
    assert write(tiny_models.build("llama"), 600).shape == (25, 24)


def test_a_first_token_begins_every_sequence_before_a_random_one(llama):
    ids = write(llama, first=1)
    assert set(ids[:, 0].tolist()) == {1}
    assert torch.equal(ids[:, 1], write(llama)[:, 0])
    assert len(set(ids[:, 1].tolist())) > 3


def test_progress_ends_with_all_tokens(llama, monkeypatch):
    monkeypatch.setitem(own_text.TOGETHER, "cpu", 4)
    for first in (None, 1):
        told = []
        ids = write(llama, 300, first=first, progress=lambda *done, told=told: told.append(done))
        assert told[-1] == (ids.numel(), ids.numel())
        assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_tokens_follow_the_models_own_distributions(monkeypatch):
    """The token after each pair of tokens, counted: chi-square against softmax of the logits of a plain pass."""
    model = tiny_models.build("llama", vocab_size=6, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model.lm_head.weight.data *= 3
    monkeypatch.setattr(own_text, "LENGTH", 3)
    ids = write(model.requires_grad_(False), 3 * 4000, seed=5)
    observed, expected = torch.zeros(6, 6), torch.zeros(6, 6)
    begins, numbers = ids[:, :2].unique(dim=0, return_inverse=True)
    likely = model(begins).logits[:, -1].double().softmax(dim=-1)
    for begin, row in zip(begins, likely, strict=True):
        here = ids[(ids[:, :2] == begin).all(dim=1), 2]
        observed[begin[1]] += torch.bincount(here, minlength=6)
        expected[begin[1]] += row.float() * len(here)
    assert len(numbers) == 4000
    assert float(likely.max()) > 0.3  # they are not all alike
    assert float(((observed - expected).square() / expected).sum()) < 66  # 30 degrees of freedom: one in 5000 is above
    distance = float((observed - expected).abs().sum() / observed.sum()) / 2
    assert distance < 0.04


@pytest.mark.parametrize("arch", ["llama", "opt", "gpt2", "gpt_neox", "gemma", "mixtral"])
def test_the_growing_cache_is_transformers_own(arch, monkeypatch):
    """Token by token, past the room that there is at first, in the middle of which it has to grow."""
    monkeypatch.setattr(own_text, "FIRST_ROOM", 4)
    model, ids = tiny_models.build(arch).requires_grad_(False), tiny_models.tokens(3, 24)
    ours, theirs = growing_cache(model.config), transformers.DynamicCache(config=model.config)
    whole = model(ids).logits
    begin = 0
    for size in (5, 1, 1, 3, 1, 1, 1, 8, 1, 1, 1):
        part = ids[:, begin : begin + size]
        found, expected = (model(part, past_key_values=cache, use_cache=True).logits for cache in (ours, theirs))
        assert torch.equal(found, expected)
        torch.testing.assert_close(found, whole[:, begin : begin + size], rtol=1e-3, atol=1e-4)
        begin += size
    assert ours.get_seq_length() == theirs.get_seq_length() == 24


def test_a_sliding_window_keeps_transformers_own_layers():
    model = tiny_models.build("mistral", sliding_window=8).requires_grad_(False)
    ids = write(model, 128)
    logits = model(ids).logits
    assert torch.isfinite(logits).all()
    assert "Growing" not in {type(layer).__name__ for layer in growing_cache(model.config).layers}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_a_sentence(value):
    model = tiny_models.build("llama").requires_grad_(False)
    model.model.norm.weight[3] = value
    with pytest.raises(KQuantError, match="computes logits that are not finite, so it cannot write its own text: mend"):
        write(model)
