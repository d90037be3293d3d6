"""Where the tokens come from that a model is measured on: random ones, or a text file of the user's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
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
OWN: Final = "own"  # text that the model itself writes
MOST_BYTES: Final = 1_000_000_000  # of a text; a calibration reads the first MB
CAUSAL: Final = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Source:
    """A text, or random tokens where `text` is None; `description` is "random", or the file's name and `sha256`."""

    name: str
    description: str
    text: str | None = None
    sha256: str | None = None


def open_source(stats: str, word: str = RANDOM) -> Source:
    """Random tokens for "random", else the text file of that name; `word`: what a user calls random tokens here.

    Raises KQuantError when the file cannot be read, is not UTF-8, or is empty.
    """
    if stats == word:
        return Source(RANDOM, RANDOM)
    path = Path(stats)
    expected = f"expected a UTF-8 text file, or {word!r} for random tokens"
    try:
        path = path.expanduser()
        if path.exists() and not path.is_file():
            raise OSError("no plain file")  # a pipe would be waited for, a device has no end
        with open_plain(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
                raise KQuantError(
                    f"{path} has {size} bytes, and kquant reads a text of at most {MOST_BYTES}: give a part"
                )
            content = file.read()
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KQuantError(f"{path} is not UTF-8 text (byte {error.start}): {expected}; convert it to UTF-8") from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no such user; ValueError: a NUL
        reason = getattr(error, "strerror", None) or error
        raise KQuantError(f"{path} cannot be read ({reason}): {expected}; check the path") from error
    if not text.strip():
        raise KQuantError(f"{path} is empty: {expected}; give a file with some pages of text")
    digest = sha256(content).hexdigest()
    return Source(str(path), f"{path.name} (SHA-256 {digest})", text, digest)


def describe_source(stats: str, word: str = RANDOM) -> str:
    """What the numbers depend on: "random", or the name and the SHA-256 of the text; KQuantError as `open_source`."""
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
