"""`--against`: differences, errors, KL divergence and agreement against computations on whole tables of logits."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import tiny_text_models
import torch
import transformers

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import EvalOptions, PerplexityResult, perplexity
from kquant_cli.evaluation.texts import Text
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.runtime import load_model

TEXT = Text(tiny_text_models.text(), "made-up prose")


@pytest.fixture(scope="module")
def other(tiny_opt: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The tiny model with noise on its weights."""
    folder = tmp_path_factory.mktemp("other")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_opt.path)
    generator = torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    tiny_opt.tokenizer.save_pretrained(folder)
    return load_model(folder, device="cpu")


def tables(loaded: LoadedModel, length: int, windows: int) -> list[np.ndarray]:
    """Log-probabilities (length - 1, vocabulary) of each of the first windows, by transformers alone."""
    ids = torch.tensor(loaded.tokenizer(TEXT.content)["input_ids"])
    with torch.no_grad():
        return [
            loaded.model(ids[None, i * length : (i + 1) * length]).logits[0, :-1].double().log_softmax(dim=1).numpy()
            for i in range(windows)
        ]


def test_against_an_independent_computation(tiny_opt: LoadedModel, other: LoadedModel) -> None:
    result = perplexity(other, TEXT, EvalOptions(seqlen=33, limit=9), against=tiny_opt)
    against = result.against
    assert against is not None
    assert against.kl_divergence is not None
    alone = perplexity(other, TEXT, EvalOptions(seqlen=33, limit=9))
    assert result.perplexity == pytest.approx(alone.perplexity, rel=1e-6)
    original = perplexity(tiny_opt, TEXT, EvalOptions(seqlen=33, limit=9))
    assert against.metrics["perplexity"] == pytest.approx(original.perplexity, rel=1e-6)
    q, p = tables(other, 33, 9), tables(tiny_opt, 33, 9)
    kl = np.array([scipy.stats.entropy(np.exp(a), np.exp(b), axis=1).mean() for a, b in zip(p, q, strict=True)])
    assert against.kl_divergence.value == pytest.approx(kl.mean(), rel=1e-4)
    assert against.kl_divergence.standard_error == pytest.approx(kl.std(ddof=1) / 3, rel=1e-3)
    same = [(a.argmax(axis=1) == b.argmax(axis=1)).mean() for a, b in zip(p, q, strict=True)]
    assert against.agreement == pytest.approx(np.mean(same))
    difference = np.array(alone.window_nlls) - np.array(original.window_nlls)
    assert against.differences["nll"].value == pytest.approx(difference.mean(), rel=1e-4)
    assert against.differences["nll"].standard_error == pytest.approx(difference.std(ddof=1) / 3, rel=1e-4)
    estimate = against.differences["perplexity"]
    assert estimate.value == pytest.approx(alone.perplexity - original.perplexity, rel=1e-3)
    left = [
        math.exp(np.delete(alone.window_nlls, i).mean()) - math.exp(np.delete(original.window_nlls, i).mean())
        for i in range(9)
    ]
    assert estimate.standard_error == pytest.approx(np.std(left) * math.sqrt(8), rel=1e-3)


def test_windows_that_are_not_alike_are_weighted(tiny_opt: LoadedModel, other: LoadedModel) -> None:
    options = EvalOptions(protocol="stride", seqlen=40, stride=13)
    short = Text(TEXT.content[:500], "a piece")
    result = perplexity(other, short, options, against=tiny_opt)
    assert result.against is not None
    ours, theirs = perplexity(other, short, options), perplexity(tiny_opt, short, options)
    assert result.against.differences["nll"].value == pytest.approx(ours.nll - theirs.nll, rel=1e-5)
    assert result.against.metrics["perplexity"] == pytest.approx(theirs.perplexity, rel=1e-6)


def test_a_model_against_itself_differs_in_nothing(tiny_opt: LoadedModel) -> None:
    against = perplexity(tiny_opt, TEXT, EvalOptions(limit=3), against=tiny_opt).against
    assert against is not None
    assert against.kl_divergence is not None
    assert (against.kl_divergence.value, against.agreement) == (0.0, 1.0)
    assert (against.differences["perplexity"].value, against.differences["perplexity"].standard_error) == (0.0, 0.0)


def test_one_window_has_no_error(tiny_opt: LoadedModel, other: LoadedModel) -> None:
    result = perplexity(other, TEXT, EvalOptions(limit=1), against=tiny_opt)
    assert result.against is not None
    assert result.against.differences["perplexity"].standard_error is None
    assert "±" not in result.sentence()
    assert result.to_dict()["against"]["kl_divergence"]["standard_error"] is None


def test_what_it_says(tiny_opt: LoadedModel, other: LoadedModel) -> None:
    result = perplexity(other, TEXT, EvalOptions(limit=4), against=tiny_opt)
    for part in (
        f"against {tiny_opt.path} (dense, float32)",
        "paired over windows",
        "KL(original || model)",
        "of tokens",
    ):
        assert part in result.sentence()
    entry: dict[str, Any] = result.to_dict()
    assert entry["metrics"] == {"perplexity": result.perplexity}
    assert set(entry["against"]["differences"]) == {"perplexity", "nll"}
    assert set(entry["against"]["differences"]["nll"]) == {"value", "standard_error"}


def test_what_cannot_be_compared(tiny_opt: LoadedModel, tmp_path: Path) -> None:
    larger = tiny_text_models.make(tmp_path / "larger")
    transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=400,
            hidden_size=16,
            ffn_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            word_embed_proj_dim=16,
        )
    ).save_pretrained(larger)
    with pytest.raises(KQuantError, match=r"has a vocabulary of 400 tokens and .* one of 320"):
        perplexity(tiny_opt, TEXT, EvalOptions(limit=1), against=load_model(larger, device="cpu"))
    twisted = tiny_text_models.make(tmp_path / "twisted")
    file = twisted / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))  # no </s> at the beginning
    with pytest.raises(KQuantError, match="cut the text into different tokens"):
        perplexity(tiny_opt, TEXT, EvalOptions(limit=1), against=load_model(twisted, device="cpu"))


def test_infinite_numbers_are_null_in_json(tiny_opt: LoadedModel) -> None:
    result = perplexity(tiny_opt, TEXT, EvalOptions(limit=2))
    assert isinstance(result, PerplexityResult)
    broken = type(result)(**{**vars(result), "perplexity": math.inf})
    assert broken.to_dict()["metrics"]["perplexity"] is None
    assert broken.to_dict()["perplexity"] is None
