"""Tiny random checkpoints of models that use their layers' weights, norms or heads in ways of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

SMALL: dict[str, Any] = {"vocab_size": 128, "hidden_size": 32}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ATTENTION = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
UNCOMMON: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", "MambaForCausalLM", {**SMALL, "num_hidden_layers": 2, "state_size": 8, **TOKENS}),
    "rwkv": (
        "RwkvConfig",
        "RwkvForCausalLM",
        {**SMALL, "num_hidden_layers": 4, "rescale_every": 2, "context_length": 64},
    ),
    "bloom": ("BloomConfig", "BloomForCausalLM", {**SMALL, "n_layer": 2, "n_head": 4}),
    "deberta": ("DebertaConfig", "DebertaForMaskedLM", {**SMALL, **ATTENTION}),
    "cohere": (
        "CohereConfig",
        "CohereForCausalLM",
        {**SMALL, **ATTENTION, "num_key_value_heads": 2, "use_qk_norm": True, **TOKENS},
    ),
    "musicgen": (
        "MusicgenDecoderConfig",
        "MusicgenForCausalLM",
        {**SMALL, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4, "num_codebooks": 4},
    ),
}


def make(arch: str, folder: Path, **overrides: Any) -> Path:
    """Save the seeded random model of `arch` into `folder`; returns the folder."""
    config_name, model_name, settings = UNCOMMON[arch]
    config = getattr(transformers, config_name)(**{**settings, **overrides})
    model = getattr(transformers, model_name)(config).eval()
    generator = torch.Generator().manual_seed(20240410)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    return folder
