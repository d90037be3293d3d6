"""A model in memory and the tokens it is calibrated on: its own text, or a file of the user's.

The tokens are kept in a file beside the bundle (`<name>.text.safetensors`), so that a run that goes on need not have
them written again; their SHA-256 is in the bundle's provenance.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kquant_cli.calibration.memory import require_free
from kquant_cli.calibration.own_text import FEWEST, LENGTH, write_text
from kquant_cli.calibration.text_source import OWN, measuring_threads, open_source, text_digest
from kquant_cli.calibration.unavailable import StatisticsUnavailable, or_unavailable
from kquant_cli.checkpoint import Checkpoint
from kquant_cli.errors import KQuantError, is_shortage
from kquant_cli.files.plain_files import is_there
from kquant_cli.files.safetensors_reader import read_header, read_tensor
from kquant_cli.files.safetensors_writer import tensor_file
from kquant_cli.hf.limits import longest_input
from kquant_cli.hf.loading import load_dense, to_own_memory
from kquant_cli.hf.quiet import quiet
from kquant_cli.hf.tokens import read_tokenizer, text_ids, vocabulary

ENDING: Final = ".text.safetensors"


@dataclass(frozen=True)
class Session:
    """`model`: dense, float32, in evaluation mode, without gradients; `ids` (sequences, length); what they are."""

    model: Any
    ids: Tensor
    device: torch.device
    source: str

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of the text."""
        return {"source": self.source, "tokens": self.ids.numel(), "text_sha256": text_digest(self.ids)}


def text_path(out: Path) -> Path:
    """The file of the bundle `out` that keeps its calibration's tokens."""
    return out.with_name(out.name + ENDING)


def open_session(
    checkpoint: Checkpoint,
    source: str,
    tokens: int,
    *,
    seed: int,
    device: torch.device,
    file: Path,
    fingerprint: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Session:
    """Load the model, and have or read its tokens; `source` is "own" or a text file, `fingerprint` the checkpoint's.

    Raises
    ------
    StatisticsUnavailable
        The model cannot be run.
    MemoryShortage
        Less memory is free than it needs.
    KQuantError
        The text cannot be used, its logits are not finite, or the file cannot be written.
    """
    require_free(checkpoint, device)
    try:
        with quiet():
            model = load_dense(checkpoint.path, device=device, dtype=torch.float32).model.requires_grad_(False)
    except KQuantError as error:
        if is_shortage(error):
            raise
        raise StatisticsUnavailable(str(error)) from error
    to_own_memory(model)
    checkpoint.require_unchanged()
    described = OWN if source == OWN else open_source(source).description
    settings = json.dumps([fingerprint, described, tokens, seed, device.type, measuring_threads(device), LENGTH])
    wanted = sha256(settings.encode()).hexdigest()
    there = is_there(file)
    ids = _kept(file, wanted, vocabulary(model)) if there else None
    if ids is None:
        if there:
            say(f"the text in {file} is damaged, or of other settings or weights, and is made again")
        first = _first_token(checkpoint)
        if source == OWN:
            with or_unavailable(checkpoint.name), quiet():
                ids = write_text(model, tokens, seed=seed, device=device, first=first, progress=progress)
        else:
            ids = _sequences(model, checkpoint, source, tokens)
        checkpoint.require_unchanged()
        _keep(file, wanted, ids)
    return Session(model, ids, device, described)


def _first_token(checkpoint: Checkpoint) -> int | None:
    """The token that the tokenizer begins every text with; None where it does not, or there is none."""
    try:
        tokenizer = read_tokenizer(checkpoint.path)
        ids = text_ids(tokenizer, "a", 8, letters=16, special=True)
    except KQuantError as error:
        if is_shortage(error):
            raise
        return None
    return int(ids[0]) if len(ids) > 1 and ids[0] == tokenizer.bos_token_id else None


def _sequences(model: Any, checkpoint: Checkpoint, source: str, tokens: int) -> Tensor:
    """The beginning of a text as sequences of equal length."""
    text = open_source(source)
    try:
        tokenizer = read_tokenizer(checkpoint.path)
    except KQuantError as error:
        raise KQuantError(f"{error}, or give --calibration own in place of {text.name}") from error
    ids = text_ids(tokenizer, text.text or "", tokens, letters=16, special=False)
    if len(ids) < 2 * FEWEST:
        raise KQuantError(
            f"{text.name} gives {len(ids)} tokens, expected {2 * FEWEST} or more to calibrate on: give a longer text"
        )
    if max(ids) >= vocabulary(model):
        raise KQuantError(
            f"{checkpoint.name}: its tokenizer gives token {max(ids)} for {text.name}, expected ids below the model's "
            f"{vocabulary(model)}: put the model's own tokenizer beside the weights"
        )
    longest = longest_input(model)
    length = min(LENGTH, LENGTH if longest is None else longest, len(ids) // FEWEST)
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def _kept(file: Path, wanted: str, size: int) -> Tensor | None:
    """The tokens of the file, if they are the wanted ones, below `size`."""
    with suppress(OSError, KQuantError, SafetensorError, LookupError):
        infos = read_header(file)
        with safe_open(file, framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
        ids = read_tensor(infos["ids"])
        sound = ids.dtype == torch.int32 and ids.ndim == 2 and ids.numel() > 0
        if sound and metadata["settings"] == wanted and metadata["sha256"] == _digest(ids):
            return ids.long() if bool(((ids >= 0) & (ids < size)).all()) else None
    return None


def _digest(ids: Tensor) -> str:
    """SHA-256 of the tokens and how they lie."""
    return sha256(f"{tuple(ids.shape)} {text_digest(ids)}".encode()).hexdigest()


def _keep(file: Path, wanted: str, ids: Tensor) -> None:
    metadata = {"format": "pt", "settings": wanted, "sha256": _digest(ids)}
    try:
        with tensor_file(file, [("ids", torch.int32, tuple(ids.shape))], metadata) as opened:
            opened.write("ids", ids.int())
    except OSError as error:
        raise KQuantError(f"{file} cannot be written ({error.strerror or error}): choose another --output") from error
