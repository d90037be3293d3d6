"""Tiny random checkpoints of real architectures, made by transformers, for the tests of every room.

    folder = make("llama", tmp_path / "llama", tie_word_embeddings=True)

Hidden size 32, two blocks, 128 tokens, float32; the same architecture, overrides and versions give the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

HIDDEN, FEED_FORWARD, LAYERS, VOCABULARY = 32, 64, 2, 128
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Architecture:
    """The config and model classes of transformers, by name, and what the config is told."""

    config: str
    model: str
    settings: Mapping[str, Any]

    @property
    def auto_class(self) -> str:
        """The auto class that loads such a checkpoint."""
        for ending, auto_class in (
            ("ForMaskedLM", "AutoModelForMaskedLM"),
            ("ForSequenceClassification", "AutoModelForSequenceClassification"),
        ):
            if self.model.endswith(ending):
                return auto_class
        return "AutoModelForCausalLM"


COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": FEED_FORWARD,
    "max_position_embeddings": 64,
    **TOKENS,
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "ffn_dim": FEED_FORWARD,
    "max_position_embeddings": 64,
    **TOKENS,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, **TOKENS}

ARCHITECTURES: dict[str, Architecture] = {
    "opt": Architecture("OPTConfig", "OPTForCausalLM", {**OPT, "word_embed_proj_dim": HIDDEN}),
    "opt_projected": Architecture(
        "OPTConfig", "OPTForCausalLM", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    ),
    "gpt2": Architecture("GPT2Config", "GPT2LMHeadModel", GPT2),
    "gpt_bigcode": Architecture("GPTBigCodeConfig", "GPTBigCodeForCausalLM", GPT2),
    "gpt_neox": Architecture("GPTNeoXConfig", "GPTNeoXForCausalLM", COMMON),
    "llama": Architecture("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "mistral": Architecture("MistralConfig", "MistralForCausalLM", GROUPED),
    "qwen2": Architecture("Qwen2Config", "Qwen2ForCausalLM", GROUPED),
    "qwen3": Architecture("Qwen3Config", "Qwen3ForCausalLM", GROUPED),
    "gemma": Architecture("GemmaConfig", "GemmaForCausalLM", {**GROUPED, "tie_word_embeddings": True}),
    "mixtral": Architecture(
        "MixtralConfig", "MixtralForCausalLM", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "bert": Architecture("BertConfig", "BertForMaskedLM", COMMON),
    "bert_classifier": Architecture("BertConfig", "BertForSequenceClassification", {**COMMON, "num_labels": 3}),
    "roberta": Architecture("RobertaConfig", "RobertaForMaskedLM", COMMON),
    "roberta_classifier": Architecture(
        "RobertaConfig", "RobertaForSequenceClassification", {**COMMON, "num_labels": 3}
    ),
}


def build(arch: str, **overrides: Any) -> transformers.PreTrainedModel:
    """The seeded random model of `arch`, in memory, float32, in evaluation mode.

    Weights and biases all differ from zero and from one, so that a tensor lost on the way changes the logits.
    """
    architecture = ARCHITECTURES[arch]
    config = getattr(transformers, architecture.config)(**{**architecture.settings, **overrides})
    model = getattr(transformers, architecture.model)(config).eval()
    generator = torch.Generator().manual_seed(20240409)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / HIDDEN**0.5 if parameter.ndim > 1 else 0.1 * noise + (parameter == 1.0))
    return model


def make(
    arch: str, folder: Path, *, save_dtype: torch.dtype = torch.float32, max_shard_size: str = "50GB", **overrides: Any
) -> Path:
    """Save the seeded random model of `arch` into `folder` with `save_pretrained`; returns the folder.

    `overrides` go into the config; a `max_shard_size` such as "20KB" gives shards with an index.
    """
    build(arch, **overrides).to(save_dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def load(arch: str, folder: Path) -> transformers.PreTrainedModel:
    """The model of `arch` that transformers reads from `folder`, in the checkpoint's own dtype."""
    return getattr(transformers, ARCHITECTURES[arch].auto_class).from_pretrained(folder).eval()


def tokens(batch: int = 2, length: int = 12) -> torch.Tensor:
    """Seeded token ids (batch, length) inside every vocabulary here, no special ones among them."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(7))
