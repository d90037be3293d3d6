"""Perplexity of a causal language model on a text: exp of the mean loss, under a published protocol (windows.py)."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import torch

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.comparison import compare
from kquant_cli.evaluation.jackknife import means_left_out, standard_error
from kquant_cli.evaluation.losses import TokenLosses, last
from kquant_cli.evaluation.options import EvalOptions, Progress
from kquant_cli.evaluation.precision import full_float32
from kquant_cli.evaluation.result import Against, Estimate, Result, common, dtype_name
from kquant_cli.evaluation.texts import Text
from kquant_cli.evaluation.tokens import require_comparable, require_same_tokens
from kquant_cli.evaluation.windows import Protocol, Window, select, settle, shared_maximum
from kquant_cli.hf.causality import require_causal
from kquant_cli.hf.device_map import input_device
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.hf.tokens import encode, require_known, vocabulary


@dataclass(frozen=True, kw_only=True)
class PerplexityResult(Result):
    """A perplexity with all that is needed to compare it with another, or to measure it again."""

    data_is: ClassVar[str] = "text"

    perplexity: float  # exp(nll); infinite where that overflows
    nll: float  # nats a token, weighted as the protocol does
    window_nlls: tuple[float, ...]  # mean loss of each window, for paired comparisons
    tokens: int  # predictions made
    windows: int
    seqlen: int
    stride: int
    text_tokens: int
    vocabulary: int
    special_tokens_added: int  # of the text's tokens, those that the tokenizer put there (a beginning of sentence, ...)

    @property
    def metrics(self) -> dict[str, float]:
        """The perplexity."""
        return {"perplexity": self.perplexity}

    @property
    def counts(self) -> dict[str, int]:
        """Predictions and windows."""
        return {"tokens": self.tokens, "windows": self.windows}

    def protocol_sentence(self) -> str:
        """The protocol, how many windows and how many tokens."""
        protocol = Protocol(self.protocol, self.seqlen, self.stride).sentence()  # type: ignore[arg-type]
        limited = " (--limit)" if self.limit is not None else ""
        plural = "" if self.windows == 1 else "s"
        return (
            f"{protocol}; {self.windows:,} window{plural}{limited}, {self.tokens:,} predicted tokens of "
            f"{self.text_tokens:,}"
        )


def perplexity(
    loaded: LoadedModel,
    text: Text,
    options: EvalOptions,
    task: str = "text",
    against: LoadedModel | None = None,
    protocol: str = "gptq",
) -> PerplexityResult:
    """Measure the perplexity of `loaded` on `text` under `options.protocol`, by default the task's `protocol`.

    With `against` the original is measured on the same windows beside it.

    Raises
    ------
    KQuantError
        A model sees later tokens, the text is shorter than one window, a model cannot have such windows, its loss is no
        number, or the two models do not read the same tokens.
    """
    models = [loaded] if against is None else [loaded, against]
    for model in models:
        require_causal(model.path, model.model)
    settled = settle(
        options.protocol or protocol, options.seqlen, options.stride, shared_maximum([m.model.config for m in models])
    )
    tokens, special = _tokenise(loaded, text)
    if against is not None:
        require_comparable(loaded, against)
        require_same_tokens(loaded, against, torch.equal(tokens, _tokenise(against, text)[0]))
    if text.most_windows is not None:
        tokens = tokens[: text.most_windows * settled.seqlen]
    if len(tokens) < settled.seqlen:
        raise KQuantError(
            f"the text ({text.description}) has {len(tokens)} tokens, fewer than one window of {settled.seqlen}: "
            "give a longer text, or a shorter window with --seqlen"
        )
    windows = select(settled.windows(len(tokens)), options.limit)
    started = time.perf_counter()
    means = window_means([m.model for m in models], tokens, windows, options.progress)
    seconds = time.perf_counter() - started
    nlls = [_nll(means[:, column], windows, model) for column, model in enumerate(models)]
    return PerplexityResult(
        **common(loaded, task, options),
        protocol=settled.name,
        data=text.description,
        data_sha256=text.sha256,
        seconds=seconds,
        against=None if against is None else _against(against, nlls, means, windows),
        perplexity=_exp(nlls[0]),
        nll=nlls[0],
        window_nlls=tuple(means[:, 0].tolist()),
        tokens=sum(window.predictions for window in windows),
        windows=len(windows),
        seqlen=settled.seqlen,
        stride=settled.stride,
        text_tokens=len(tokens),
        vocabulary=vocabulary(loaded.model),
        special_tokens_added=special,
    )


def window_means(
    models: Sequence[Any], tokens: torch.Tensor, windows: Sequence[Window], progress: Progress
) -> np.ndarray:
    """The mean loss of each window over the predictions that count, in nats (windows, 1); `tokens` (length,).

    For two models, the second being the original: their losses, KL divergence and agreement (windows, 4).
    """
    means: list[list[float]] = []
    with torch.inference_mode(), full_float32():
        losses = [TokenLosses.of(model) for model in models]
        progress(0, len(windows))
        for batch in _batches(windows, losses):
            ids = torch.stack([tokens[window.begin : window.end] for window in batch]).to(input_device(models[0]))
            means += _batch_means(losses, ids, batch[0].predictions).tolist()
            progress(len(means), len(windows))
    return np.array(means)


def _batch_means(losses: Sequence[TokenLosses], ids: torch.Tensor, predictions: int) -> torch.Tensor:
    """The rows of `window_means` for windows `ids` (batch, length)."""
    if len(losses) == 1:
        return losses[0](ids, predictions).double().mean(dim=1, keepdim=True)
    found = compare(losses[0], losses[1], ids, last(ids, predictions), ids[:, -predictions:].flatten())
    columns = (found.losses, found.original_losses, found.divergences, found.agreements)
    return torch.stack([column.view(len(ids), predictions).mean(dim=1) for column in columns], dim=1)


def _batches(windows: Sequence[Window], losses: Sequence[TokenLosses]) -> Iterator[list[Window]]:
    """Neighbouring windows of one shape, as many as go through the models at once."""
    for (length, _), group in groupby(windows, key=lambda window: (window.end - window.begin, window.predictions)):
        alike = list(group)
        size = min(model.batch_size(length) for model in losses)
        yield from (alike[i : i + size] for i in range(0, len(alike), size))


def _nll(means: np.ndarray, windows: Sequence[Window], loaded: LoadedModel) -> float:
    """The protocol's mean loss from the windows' (windows,)."""
    nll = math.fsum(mean * window.scored for mean, window in zip(means, windows, strict=True)) / windows[-1].end
    if not math.isfinite(nll):
        raise KQuantError(f"the loss of {loaded.path} in {dtype_name(loaded)} is not a number: try --dtype float32")
    return nll


def _against(original: LoadedModel, nlls: Sequence[float], means: np.ndarray, windows: Sequence[Window]) -> Against:
    """The comparison from the two mean losses and the windows' means (windows, 4)."""
    scored = np.array([window.scored for window in windows], dtype=float)
    predicted = np.array([window.predictions for window in windows], dtype=float)
    ours, theirs = (means_left_out(means[:, column], scored) for column in (0, 1))
    with np.errstate(over="ignore", invalid="ignore"):
        perplexity_error = standard_error(np.exp(ours) - np.exp(theirs))
    return Against(
        model=original.path,
        model_kind=original.kind,
        dtype=dtype_name(original),
        metrics={"perplexity": _exp(nlls[1])},
        differences={
            "perplexity": Estimate(_exp(nlls[0]) - _exp(nlls[1]), perplexity_error),
            "nll": Estimate(nlls[0] - nlls[1], standard_error(ours - theirs)),
        },
        paired_over="windows",
        per="token",
        kl_divergence=Estimate(
            float(np.average(means[:, 2], weights=predicted)), standard_error(means_left_out(means[:, 2], predicted))
        ),
        agreement=float(np.average(means[:, 3], weights=predicted)),
    )


def _tokenise(loaded: LoadedModel, text: Text) -> tuple[torch.Tensor, int]:
    """The tokens (length,) of the text, as the tokenizer gives them by default, and how many special ones it adds."""
    tokens = torch.tensor(encode(loaded.tokenizer, text.content)["input_ids"], dtype=torch.long)
    require_known(loaded.path, loaded.model, tokens)
    return tokens, loaded.tokenizer.num_special_tokens_to_add(pair=False)


def _exp(nll: float) -> float:
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
