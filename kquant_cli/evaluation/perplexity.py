"""Perplexity of a causal language model on a text: exp of the mean loss, under a published protocol (windows.py)."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.losses import TokenLosses, vocabulary
from kquant_cli.evaluation.options import EvalOptions, Progress
from kquant_cli.evaluation.texts import Text
from kquant_cli.evaluation.versions import versions
from kquant_cli.evaluation.windows import Protocol, Window, maximum_window, select, settle
from kquant_cli.runtime import LoadedModel


@dataclass(frozen=True)
class PerplexityResult:
    """A perplexity with all that is needed to compare it with another, or to measure it again."""

    task: str
    model: str
    model_kind: str  # dense | bundle
    perplexity: float  # exp(nll); infinite where that overflows
    nll: float  # nats a token, weighted as the protocol does
    window_nlls: tuple[float, ...]  # mean loss of each window, for paired comparisons
    tokens: int  # predictions made
    windows: int
    protocol: str
    seqlen: int
    stride: int
    limit: int | None
    dtype: str
    device: str
    text: str
    text_sha256: str
    text_tokens: int
    tokenizer: str
    vocabulary: int
    special_tokens_added: int  # of the text's tokens, those that the tokenizer put there (a beginning of sentence, ...)
    seconds: float
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The JSON entry; a perplexity that overflowed is null there, for JSON knows no infinity."""
        entry = asdict(self)
        entry["perplexity"] = self.perplexity if math.isfinite(self.perplexity) else None
        return entry

    def sentence(self) -> str:
        """The protocol line that goes with the number."""
        protocol = Protocol(self.protocol, self.seqlen, self.stride).sentence()  # type: ignore[arg-type]
        limited = " (--limit)" if self.limit is not None else ""
        plural = "" if self.windows == 1 else "s"
        return (
            f"{self.task}: {protocol}; {self.windows:,} window{plural}{limited}, {self.tokens:,} predicted tokens of "
            f"{self.text_tokens:,}; {self.dtype} on {self.device}; text: {self.text}, sha256 {self.text_sha256[:12]}"
        )


def perplexity(loaded: LoadedModel, text: Text, options: EvalOptions, task: str = "text") -> PerplexityResult:
    """Measure the perplexity of `loaded` on `text` under `options.protocol`.

    Raises
    ------
    KQuantError
        The text is shorter than one window, the model cannot have such windows, or the loss is no number.
    """
    protocol = settle(options.protocol, options.seqlen, options.stride, maximum_window(loaded.model.config))
    tokens, special = _tokenise(loaded, text)
    if len(tokens) < protocol.seqlen:
        raise KQuantError(
            f"the text ({text.description}) has {len(tokens)} tokens, fewer than one window of {protocol.seqlen}: "
            "give a longer text, or a shorter window with --seqlen"
        )
    windows = select(protocol.windows(len(tokens)), options.limit)
    started = time.perf_counter()
    means = window_losses(loaded.model, tokens, windows, options.progress)
    seconds = time.perf_counter() - started
    nll = math.fsum(mean * window.scored for mean, window in zip(means, windows, strict=True)) / windows[-1].end
    if not math.isfinite(nll):
        raise KQuantError(f"the loss of {loaded.path} in {_name(loaded.dtype)} is not a number: try --dtype float32")
    return PerplexityResult(
        task=task,
        model=loaded.path,
        model_kind=loaded.kind,
        perplexity=_exp(nll),
        nll=nll,
        window_nlls=tuple(means),
        tokens=sum(window.predictions for window in windows),
        windows=len(windows),
        protocol=protocol.name,
        seqlen=protocol.seqlen,
        stride=protocol.stride,
        limit=options.limit,
        dtype=_name(loaded.dtype),
        device=loaded.device.type,
        text=text.description,
        text_sha256=text.sha256,
        text_tokens=len(tokens),
        tokenizer=type(loaded.tokenizer).__name__,
        vocabulary=vocabulary(loaded.model),
        special_tokens_added=special,
        seconds=seconds,
        versions=versions(),
    )


def window_losses(model: Any, tokens: torch.Tensor, windows: Sequence[Window], progress: Progress) -> list[float]:
    """The mean loss of each window over the predictions that count, in nats; `tokens` (length,) on any device."""
    means: list[float] = []
    with torch.inference_mode(), _full_float32():
        losses = TokenLosses.of(model)
        progress(0, len(windows))
        for batch in _batches(windows, losses):
            ids = torch.stack([tokens[window.begin : window.end] for window in batch]).to(model.device)
            means += losses(ids, batch[0].predictions).double().mean(dim=1).tolist()
            progress(len(means), len(windows))
    return means


def _batches(windows: Sequence[Window], losses: TokenLosses) -> Iterator[list[Window]]:
    """Neighbouring windows of one shape, as many as go through the model at once."""
    for (length, _), group in groupby(windows, key=lambda window: (window.end - window.begin, window.predictions)):
        alike = list(group)
        size = losses.batch_size(length)
        yield from (alike[i : i + size] for i in range(0, len(alike), size))


def _tokenise(loaded: LoadedModel, text: Text) -> tuple[torch.Tensor, int]:
    """The tokens (length,) of the text, as the tokenizer gives them by default, and how many special ones it adds."""
    tokens = torch.tensor(loaded.tokenizer(text.content, verbose=False)["input_ids"], dtype=torch.long)
    known = vocabulary(loaded.model)
    if len(tokens) and int(tokens.max()) >= known:
        raise KQuantError(
            f"the tokenizer of {loaded.path} gives token {int(tokens.max())}, but the model's vocabulary has "
            f"{known} tokens: the tokenizer belongs to another model"
        )
    return tokens, loaded.tokenizer.num_special_tokens_to_add(pair=False)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _exp(nll: float) -> float:
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


@contextmanager
def _full_float32() -> Iterator[None]:
    """float32 products in float32: TF32, where the GPU has it, changes the third digit of a perplexity."""
    precision = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions
