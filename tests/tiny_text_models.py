"""Tiny random language models with a tokenizer of their own, and a text for them, for whatever measures perplexity."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import tiny_models
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import MptConfig, MptForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 320
POSITIONS = 64


def text(words: int = 600, seed: int = 3) -> str:
    """Made-up prose of that many words: the same for the same seed."""
    draw = random.Random(seed)
    syllables = ["ka", "shin", "qua", "lo", "mer", "ti", "den", "or", "é", "st"]
    vocabulary = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(80)]
    return " ".join(draw.choice(vocabulary) + draw.choice(["", "", "", ",", ".\n"]) for _ in range(words))


def save_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE tokenizer on `text()` that begins every text with </s>, as OPT's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>")
    wrapped.save_pretrained(folder)


def make(folder: Path, arch: str = "opt", **overrides: Any) -> Path:
    """Save the tiny random model of `arch` with the tokenizer beside it; 64 positions, 320 tokens."""
    tiny_models.make(arch, folder, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, **overrides)
    save_tokenizer(folder)
    return folder


def make_mpt(folder: Path) -> Path:
    """Save a tiny MPT with the tokenizer: its config calls the longest input, POSITIONS tokens, `max_seq_len`."""
    config = MptConfig(
        d_model=32, n_heads=4, n_layers=2, expansion_ratio=2, vocab_size=VOCABULARY, max_seq_len=POSITIONS
    )
    MptForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder
