"""Where the tokens come from that a model is measured on: random ones, a text file, or a data set of text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from kquant_cli.errors import KQuantError
from kquant_cli.files.plain_files import open_plain
from kquant_cli.files.tensor_bytes import tensor_bytes

RANDOM: Final = "random"
DATA_FREE: Final = "data-free"  # random tokens, as sensitivities call them
MOST_BYTES: Final = 1_000_000_000  # of a text, of which some hundred thousand tokens are read
OWN: Final = "own"  # text that the model itself writes
CAUSAL: Final = ("ForCausalLM", "LMHeadModel")
DATA_SET: Final = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")  # the hub's OWNER/NAME, :CONFIG
LETTERS: Final = 4_000_000  # taken of a data set: more than calibrations read


@dataclass(frozen=True)
class Source:
    """A text, or random tokens where `text` is None; `description` is "random", or the file's name and `sha256`."""

    name: str
    description: str
    text: str | None = None
    sha256: str | None = None


def open_source(stats: str, word: str = RANDOM) -> Source:
    """Random tokens for "random", else the text file or the data set of that name.

    `word`: what a user calls random tokens here. A data set is a folder in the hub's layout, or, where there is no such
    file, one of the hub (OWNER/NAME, OWNER/NAME:CONFIG).

    Raises KQuantError when it cannot be read, has no end or is too large, is not UTF-8, or is empty.
    """
    if stats == word:
        return Source(RANDOM, RANDOM)
    path = Path(stats)
    expected = f"expected a UTF-8 text file, a data set (OWNER/NAME of the hub, or its folder), or {word!r}"
    try:
        path = path.expanduser()
        if path.is_dir() or (not path.exists() and DATA_SET.fullmatch(stats)):
            return _data_set(str(path))
        with open_plain(path) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise KQuantError(f"{path} has more than {MOST_BYTES} bytes: {expected}; give a part of it")
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KQuantError(f"{path} is not UTF-8 text (byte {error.start}): {expected}; convert it to UTF-8") from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no such user; ValueError: a NUL
        reason = getattr(error, "strerror", None) or error
        raise KQuantError(f"{path} cannot be read ({reason}): {expected}; check the path") from error
    if "\0" in text:
        at = text.count("\n", 0, text.index("\0")) + 1
        raise KQuantError(f"{path} is no text (line {at} has the control character U+0000): {expected}")
    if not text.strip():
        raise KQuantError(f"{path} is empty: {expected}; give a file with some pages of text")
    digest = sha256(content).hexdigest()
    return Source(str(path), f"{path.name} (SHA-256 {digest})", text, digest)


@lru_cache(maxsize=1)
def _data_set(name: str) -> Source:
    from kquant_cli.hf.hub_data import data_set_text  # noqa: PLC0415 - imports datasets

    text = data_set_text(name, LETTERS)
    if not text.strip():
        raise KQuantError(f'the data set {name!r} has no text in its split "train": give another, or a text file')
    digest = sha256(text.encode()).hexdigest()
    return Source(name, f"{Path(name).name} (the first {len(text):,} letters, SHA-256 {digest})", text, digest)


def describe_source(stats: str, word: str = RANDOM) -> str:
    """What the numbers depend on: "random", or the name and the SHA-256 of the text. KQuantError as `open_source`."""
    return open_source(stats, word).description


def is_causal(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a causal language model, which can write.

    By the architecture that it names; where it names none, transformers says what models of its type are.
    """
    if config.get("is_encoder_decoder"):
        return False
    named = config.get("architectures")
    if isinstance(named, list) and named:
        return isinstance(named[0], str) and named[0].endswith(CAUSAL)
    from transformers.models.auto import modeling_auto  # noqa: PLC0415 (seconds to import)

    kind = config.get("model_type")
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in masked


def measuring_threads(device: torch.device | str) -> int:
    """In how many threads a model is run on that device: 1 for a GPU, whose own number is always the same."""
    return torch.get_num_threads() if torch.device(device).type == "cpu" else 1


def text_digest(ids: Tensor) -> str:
    """SHA-256 of token ids as int32."""
    return sha256(tensor_bytes(ids.int())).hexdigest()
