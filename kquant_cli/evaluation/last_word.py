"""Last-word prediction as lm-evaluation-harness measures it (its tasks lambada_openai and lambada_standard, version 1).

A text is split at its last space. With l the sum of the log-probabilities of the tokens of the space and the word,
given the tokens before:

    perplexity = exp(-mean l)        accuracy = share of texts whose every such token was the most likely one

The tokens are those of the whole text beyond the number of tokens of the part before the last word, as the tokenizer
gives them by default; texts longer than the model's maximum lose their beginning. A tokenizer that joins words may give
the whole no more tokens than the part, where the harness fails: there the tokens begin where the two first differ.
A text of one word is predicted from the token that begins texts, or from the one that ends them, as the harness does.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch

from kquant_cli.errors import KQuantError, shortened
from kquant_cli.evaluation.batching import longest_first
from kquant_cli.evaluation.comparison import compare
from kquant_cli.evaluation.jackknife import means_left_out, standard_error
from kquant_cli.evaluation.losses import TokenLosses, token_losses
from kquant_cli.evaluation.options import EvalOptions, Progress
from kquant_cli.evaluation.precision import full_float32
from kquant_cli.evaluation.result import Against, Estimate, Result, common, dtype_name
from kquant_cli.evaluation.rows import Rows
from kquant_cli.evaluation.tokens import require_comparable, require_same_tokens
from kquant_cli.evaluation.windows import bounded, shared_maximum
from kquant_cli.hf.causality import require_causal
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.hf.tokens import encode, require_known

Encoded = tuple[list[int], int]  # the tokens of a text, and how many of the last are its last word


@dataclass(frozen=True, kw_only=True)
class LastWordResult(Result):
    """Accuracy and perplexity of last words."""

    accuracy: float
    perplexity: float
    examples: int
    tokens: int  # of last words: predictions made
    seqlen: int | None  # the most tokens that the model reads; None: no bound
    shortened: int  # texts that lost their beginning
    joined: int  # texts whose last word the tokenizer joins to what is before

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracy first: it is what is quoted."""
        return {"accuracy": self.accuracy, "perplexity": self.perplexity}

    @property
    def counts(self) -> dict[str, int]:
        """Texts and predictions."""
        return {"examples": self.examples, "tokens": self.tokens}

    def protocol_sentence(self) -> str:
        """The harness's protocol and how much was measured."""
        limited = " (--limit)" if self.limit is not None else ""
        shortened = f", {self.shortened:,} cut to {self.seqlen} tokens" if self.shortened else ""
        joined = f", {self.joined:,} with the last word joined to others" if self.joined else ""
        return (
            "lm-evaluation-harness's protocol: the last word of each text, space included, given the rest; "
            f"{self.examples:,} texts{limited}{shortened}{joined}, {self.tokens:,} predicted tokens"
        )


def last_word(
    loaded: LoadedModel, rows: Rows, options: EvalOptions, task: str, against: LoadedModel | None = None
) -> LastWordResult:
    """Measure how well `loaded` predicts the last words of `rows`, and the original `against` beside it.

    Raises
    ------
    KQuantError
        A model sees later tokens, a text is empty, or the two models do not read the same tokens.
    """
    models = [loaded] if against is None else [loaded, against]
    for model in models:
        require_causal(model.path, model.model)
    texts = rows.texts if options.limit is None else rows.texts[: options.limit]
    encoded, joined = _encode(loaded, texts)
    if against is not None:
        require_comparable(loaded, against)
        require_same_tokens(loaded, against, encoded == _encode(against, texts)[0])
    maximum = bounded(options.seqlen, shared_maximum([model.model.config for model in models]))
    started = time.perf_counter()
    found = _measure([model.model for model in models], encoded, maximum, options.progress)
    seconds = time.perf_counter() - started
    for column, model in enumerate(models):
        if not np.isfinite(found[:, 2 * column]).all():
            raise KQuantError(f"the loss of {model.path} in {dtype_name(model)} is not a number: try --dtype float32")
    accuracy, ppl = _metrics(found[:, :2])
    return LastWordResult(
        **common(loaded, task, options),
        protocol="last word",
        data=rows.description,
        data_sha256=rows.sha256,
        seconds=seconds,
        against=None if against is None else _against(against, found, np.array([count for _, count in encoded])),
        accuracy=accuracy,
        perplexity=ppl,
        examples=len(texts),
        tokens=sum(count for _, count in encoded),
        seqlen=maximum,
        shortened=0 if maximum is None else sum(len(tokens) > maximum + 1 for tokens, _ in encoded),
        joined=joined,
    )


def _encode(loaded: LoadedModel, texts: Sequence[str]) -> tuple[list[Encoded], int]:
    """Every text's tokens and how many of them its last word has; and for how many texts it is joined to others."""
    contexts = [text.rpartition(" ")[0].rstrip() for text in texts]
    encoded: dict[int, Encoded] = {i: _single(loaded, i, text) for i, text in enumerate(texts) if not contexts[i]}
    several = [i for i in range(len(texts)) if contexts[i]]
    joined = 0
    if several:
        whole = encode(loaded.tokenizer, [texts[i] for i in several])["input_ids"]
        before = encode(loaded.tokenizer, [contexts[i] for i in several])["input_ids"]
        for i, tokens, start in zip(several, whole, before, strict=True):
            count = len(tokens) - len(start)
            if count < 1:
                same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, start, strict=False)))
                count, joined = max(1, len(tokens) - same), joined + 1
            encoded[i] = (tokens, count)
    for i, (tokens, count) in sorted(encoded.items()):
        if len(tokens) <= count:
            raise KQuantError(
                f"the tokenizer of {loaded.path} makes {len(tokens)} tokens of text {i + 1} ({shortened(texts[i])}), "
                "too few to predict the last word from others: it belongs to another model, or the text to another task"
            )
    require_known(loaded.path, loaded.model, torch.tensor([max(tokens) for tokens, _ in encoded.values()]))
    return [encoded[i] for i in range(len(texts))], joined


def _single(loaded: LoadedModel, index: int, text: str) -> Encoded:
    """The tokens of a text of one word: after the token that begins texts, or without one the token that ends them."""
    tokenizer = loaded.tokenizer
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if not text.strip() or prefix is None:
        why = "is empty" if not text.strip() else "is a single word, and the tokenizer has no token that begins texts"
        raise KQuantError(f"text {index + 1} ({text[:40]!r}) {why}: give texts of several words")
    spaced = text if text.startswith(" ") else f" {text}"
    word = encode(tokenizer, spaced, add_special_tokens=False)["input_ids"]
    tokens = word if word[:1] == [prefix] and len(word) > 1 else [prefix, *word]
    return tokens, len(tokens) - 1


def _measure(models: Sequence[Any], encoded: Sequence[Encoded], maximum: int | None, progress: Progress) -> np.ndarray:
    """Per text -l and whether every token was the most likely (texts, 2).

    For two models, the second being the original: both's, then the sum over the word's tokens of the KL divergence and
    of the agreement (texts, 6).
    """
    found = np.empty((len(encoded), 2 if len(models) == 1 else 6))
    inputs = [tokens[:-1] if maximum is None else tokens[-maximum - 1 : -1] for tokens, _ in encoded]
    done = 0
    with torch.inference_mode(), full_float32():
        losses = [TokenLosses.of(model) for model in models]
        progress(0, len(encoded))
        for batch in longest_first([len(row) for row in inputs], lambda n: min(m.batch_size(n) for m in losses)):
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(inputs[i]) for i in batch], batch_first=True)
            where = torch.zeros(ids.shape, dtype=torch.bool)
            for row, i in enumerate(batch):
                where[row, len(inputs[i]) - encoded[i][1] : len(inputs[i])] = True
            targets = torch.tensor([token for i in batch for token in encoded[i][0][-encoded[i][1] :]])
            counts = [encoded[i][1] for i in batch]
            for i, columns in zip(batch, _by_word(_predictions(losses, ids, where, targets), counts), strict=True):
                found[i] = columns
            done += len(batch)
            progress(done, len(encoded))
    return found


def _predictions(
    losses: Sequence[TokenLosses], ids: torch.Tensor, where: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Per token its loss and whether it was most likely (2, n); for two models the six rows of `_measure` (6, n)."""
    if len(losses) == 2:
        both = compare(losses[0], losses[1], ids, where, targets)
        rows = (both.losses, both.greedy, both.original_losses, both.original_greedy, both.divergences, both.agreements)
        return torch.stack(rows)
    logits = torch.cat(list(losses[0].logits(ids, where)))
    expected = targets.to(logits.device)
    return torch.stack([token_losses(logits, expected).double(), (logits.argmax(dim=1) == expected).double()]).cpu()


def _by_word(tokens: torch.Tensor, counts: Sequence[int]) -> list[list[float]]:
    """The columns of each word from those of its tokens (k, n): sums, and for 'most likely' whether all were."""
    words = []
    for word in tokens.split(list(counts), dim=1):
        row = word.sum(dim=1)
        for greedy in range(1, min(4, len(row)), 2):
            row[greedy] = word[greedy].min()
        words.append(row.tolist())
    return words


def _metrics(found: np.ndarray) -> tuple[float, float]:
    """Accuracy and perplexity from -l and correctness (texts, 2)."""
    with np.errstate(over="ignore"):
        return float(found[:, 1].mean()), float(np.exp(found[:, 0].mean()))


def _against(original: LoadedModel, found: np.ndarray, counts: np.ndarray) -> Against:
    """The comparison from the columns of `_measure` (texts, 6); `counts`: tokens of each word."""
    (accuracy, ppl), (accuracy_before, ppl_before) = _metrics(found[:, :2]), _metrics(found[:, 2:4])
    left_out = [means_left_out(found[:, column]) for column in range(4)]
    with np.errstate(over="ignore", invalid="ignore"):
        ppl_error = standard_error(np.exp(left_out[0]) - np.exp(left_out[2]))
    divergences = found[:, 4] / counts
    return Against(
        model=original.path,
        model_kind=original.kind,
        dtype=dtype_name(original),
        metrics={"accuracy": accuracy_before, "perplexity": ppl_before},
        differences={
            "accuracy": Estimate(accuracy - accuracy_before, standard_error(left_out[1] - left_out[3])),
            "perplexity": Estimate(ppl - ppl_before, ppl_error if math.isfinite(ppl - ppl_before) else None),
        },
        paired_over="examples",
        per="token",
        kl_divergence=Estimate(
            float(found[:, 4].sum() / counts.sum()), standard_error(means_left_out(divergences, counts))
        ),
        agreement=float(found[:, 5].sum() / counts.sum()),
    )
