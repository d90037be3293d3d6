"""Perplexity against computations with transformers alone: its own loss, one window at a time, in plain loops."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_text_models
import torch
import transformers

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import EvalOptions, perplexity
from kquant_cli.evaluation.losses import TokenLosses
from kquant_cli.evaluation.texts import Text
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.runtime import load_model

TEXT = Text(tiny_text_models.text(), "made-up prose")


def gptq_reference(folder: str | Path, content: str, seqlen: int, limit: int | None = None) -> float:
    """As GPTQ's code does: the model's own loss of each window, times seqlen, over windows times seqlen."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(content, return_tensors="pt").input_ids
    nlls = []
    count = min(ids.shape[1] // seqlen, limit or ids.shape[1])
    with torch.no_grad():
        for i in range(count):
            batch = ids[:, i * seqlen : (i + 1) * seqlen]
            nlls.append(model(batch, labels=batch).loss.float() * seqlen)
    return math.exp(torch.stack(nlls).sum() / (count * seqlen))


def stride_reference(folder: str | Path, content: str, window: int, stride: int) -> float:
    """As transformers' page on fixed-length models does: overlap masked by -100, mean loss times its new tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(content, return_tensors="pt").input_ids
    nlls, previous = [], 0
    with torch.no_grad():
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + window, ids.shape[1])
            batch = ids[:, begin:end]
            labels = batch.clone()
            labels[:, : -(end - previous)] = -100
            nlls.append(model(batch, labels=labels).loss * (end - previous))
            previous = end
            if end == ids.shape[1]:
                break
    return math.exp(torch.stack(nlls).sum() / end)


def test_gptq_agrees_with_transformers_alone(tiny_opt: LoadedModel) -> None:
    result = perplexity(tiny_opt, TEXT, EvalOptions())
    assert result.perplexity == pytest.approx(gptq_reference(tiny_opt.path, TEXT.content, 64), rel=1e-5)
    assert result.windows > 8
    assert result.tokens == result.windows * 63
    shorter = perplexity(tiny_opt, TEXT, EvalOptions(seqlen=17, limit=5))
    assert shorter.perplexity == pytest.approx(gptq_reference(tiny_opt.path, TEXT.content, 17, 5), rel=1e-5)
    assert (shorter.windows, shorter.tokens, shorter.limit) == (5, 80, 5)


@pytest.mark.parametrize(("seqlen", "stride"), [(None, None), (64, 13), (32, 32), (48, 5)])
def test_stride_agrees_with_transformers_alone(tiny_opt: LoadedModel, seqlen: int | None, stride: int | None) -> None:
    text = replace(TEXT, content=TEXT.content[:700])
    result = perplexity(tiny_opt, text, EvalOptions(protocol="stride", seqlen=seqlen, stride=stride))
    reference = stride_reference(tiny_opt.path, text.content, seqlen or 64, stride or 64)
    assert result.perplexity == pytest.approx(reference, rel=1e-5)


def test_stride_counts_every_token_but_the_first_once(tiny_opt: LoadedModel) -> None:
    result = perplexity(tiny_opt, TEXT, EvalOptions(protocol="stride", stride=20))
    assert result.tokens == result.text_tokens - 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Gemma2", {"final_logit_softcapping": None}),
        ("Gemma2", {"final_logit_softcapping": 1.0}),
        ("Gemma2", {"final_logit_softcapping": 30.0}),
        ("Cohere", {"logit_scale": 0.0625}),
        ("Granite", {"logits_scaling": 8.0}),
    ],
)
def test_what_models_do_to_their_logits_is_done(tmp_path: Path, name: str, settings: dict[str, float | None]) -> None:
    loaded = tiny(name, tmp_path, **settings)
    with torch.inference_mode():
        assert TokenLosses.of(loaded.model).in_pieces
    assert perplexity(loaded, TEXT, EvalOptions(limit=6)).nll == pytest.approx(mean_loss(loaded, 6), rel=1e-6)
    (setting,) = settings
    if settings[setting] is not None:
        setattr(loaded.model.config, setting, 1e6 if name == "Gemma2" else 1.0)  # so that it does matter
        loaded.model.logit_scale = 1.0
        assert mean_loss(loaded, 6) != pytest.approx(perplexity(tiny(name, tmp_path), TEXT, EvalOptions(limit=6)).nll)


def test_logits_that_nothing_explains_are_the_models_own(tmp_path: Path) -> None:
    loaded = tiny("Cohere", tmp_path, logit_scale=0.25)
    loaded.model.logit_scale = 0.4  # which its config does not say
    with torch.inference_mode():
        assert not TokenLosses.of(loaded.model).in_pieces
    assert perplexity(loaded, TEXT, EvalOptions(limit=6)).nll == pytest.approx(mean_loss(loaded, 6), rel=1e-6)


def tiny(name: str, folder: Path, **settings: float | None) -> LoadedModel:
    """The tiny random model in `folder`, made where there is none."""
    if not (folder / "config.json").exists():
        config = getattr(transformers, f"{name}Config")(
            vocab_size=tiny_text_models.VOCABULARY,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=48,
            max_position_embeddings=40,
            initializer_range=0.3,
            **settings,
        )
        torch.manual_seed(5)
        getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
        tiny_text_models.save_tokenizer(folder)
    return load_model(folder, device="cpu")


def mean_loss(loaded: LoadedModel, windows: int) -> float:
    """The mean loss over the first windows of 40 tokens, from the model's own logits."""
    ids = torch.tensor(loaded.tokenizer(TEXT.content)["input_ids"])
    losses = []
    for i in range(windows):
        window = ids[i * 40 : (i + 1) * 40]
        with torch.no_grad():
            logits = loaded.model(window[None]).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]))
    return float(torch.stack(losses).mean())


def test_float64_is_kept(tiny_opt: LoadedModel) -> None:
    exact = perplexity(load_model(tiny_opt.path, device="cpu", dtype="float64"), TEXT, EvalOptions())
    assert exact.dtype == "float64"
    assert exact.nll == pytest.approx(perplexity(tiny_opt, TEXT, EvalOptions()).nll, rel=1e-6)


def test_the_result_says_how_it_was_measured(tiny_opt: LoadedModel) -> None:
    seen: list[tuple[int, int]] = []
    options = EvalOptions(limit=4, progress=lambda done, total: seen.append((done, total)))
    result = perplexity(tiny_opt, TEXT, options, task="text")
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)
    assert result.perplexity == pytest.approx(math.exp(sum(result.window_nlls) / 4), rel=1e-12)
    assert (result.protocol, result.seqlen, result.dtype, result.device) == ("gptq", 64, "float32", "cpu")
    assert result.text_tokens == len(tiny_opt.tokenizer(TEXT.content)["input_ids"])
    assert (result.vocabulary, result.special_tokens_added) == (tiny_text_models.VOCABULARY, 1)
    for part in ("gptq protocol: windows of 64 tokens", "4 windows (--limit)", "252 predicted", "float32", "prose"):
        assert part in result.sentence()


def test_a_text_shorter_than_one_window_is_refused_with_both_numbers(tiny_opt: LoadedModel) -> None:
    short = Text("ka shin", "two words")
    count = len(tiny_opt.tokenizer(short.content)["input_ids"])
    with pytest.raises(KQuantError, match=rf"two words\) has {count} tokens, fewer than one window of 64"):
        perplexity(tiny_opt, short, EvalOptions())
    with pytest.raises(KQuantError, match="has 1 tokens"):
        perplexity(tiny_opt, Text("", "nothing"), EvalOptions(protocol="stride"))


def test_a_loss_that_is_no_number_is_refused(tiny_opt: LoadedModel) -> None:
    broken = load_model(tiny_opt.path, device="cpu")
    weights: Any = broken.model.get_input_embeddings()
    with torch.no_grad():
        weights.weight[5:].fill_(math.nan)
    with pytest.raises(KQuantError, match="is not a number: try --dtype float32"):
        perplexity(broken, TEXT, EvalOptions(limit=1))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_text_models.make(tmp_path / "model")
    small = transformers.OPTConfig(
        vocab_size=100, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16
    )
    transformers.OPTForCausalLM(small).save_pretrained(folder)
    with pytest.raises(KQuantError, match="vocabulary has 100 tokens: the tokenizer belongs to another model"):
        perplexity(load_model(folder, device="cpu"), TEXT, EvalOptions(seqlen=64))


def test_a_trained_model_agrees_under_both_protocols(shared: Callable[[str], Path]) -> None:
    folder = shared("models/TinyStories-656K")
    content = (folder / "sample.txt").read_text(encoding="utf-8")
    loaded = load_model(folder, device="cpu")
    for options, reference in (
        (EvalOptions(seqlen=128), gptq_reference(folder, content, 128)),
        (EvalOptions(protocol="stride", stride=100), stride_reference(folder, content, 512, 100)),
    ):
        result = perplexity(loaded, Text(content, "sample"), options)
        assert result.perplexity == pytest.approx(reference, rel=1e-5)
        assert 35 < result.perplexity < 70
