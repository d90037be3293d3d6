"""A loaded model as the harness wants it; imported only where lm-eval is there."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from kquant_cli.evaluation.losses import TokenLosses
from kquant_cli.evaluation.options import Progress
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.hf.tokens import require_known


class HarnessModel(HFLM):
    """The harness's own model class around a model that is loaded already.

    It counts requests, sizes its batches to their longest one, and puts inputs where the model wants them.
    """

    def __init__(self, loaded: LoadedModel, max_length: int | None, progress: Progress) -> None:
        # The harness gives the tokenizer a padding token where it has none.
        super().__init__(loaded.model, tokenizer=deepcopy(loaded.tokenizer), max_length=max_length, batch_size=1)
        self._device = loaded.device
        self._loaded, self._progress = loaded, progress
        self._losses = TokenLosses(loaded.model, in_pieces=False)
        self._done = self._expected = 0

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """Log-likelihoods of continuations, counted."""
        self._expect(len(requests))
        return self._finished(super().loglikelihood(requests, disable_tqdm))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """Log-likelihoods of whole texts, in as many windows as one batch holds."""
        self._expect(0)  # how many windows the texts have is the harness's own affair
        self.batch_size_per_gpu = self._losses.batch_size(self.max_length)
        return self._finished(super().loglikelihood_rolling(requests, disable_tqdm))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """Continuations, counted."""
        self._expect(len(requests))
        self.batch_size_per_gpu = self._losses.batch_size(self.max_length)
        return self._finished(super().generate_until(requests, disable_tqdm))

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: Any = None
    ) -> Any:
        highest = torch.tensor([max((*start, *end)) for _, start, end in requests])
        require_known(self._loaded.path, self._loaded.model, highest)
        if override_bs is None:
            longest = max(len(start) + len(end) for _, start, end in requests)
            self.batch_size_per_gpu = self._losses.batch_size(min(longest, self.max_length))
        return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)

    def _model_call(self, inps: torch.Tensor, **options: Any) -> torch.Tensor:
        logits: torch.Tensor = super()._model_call(inps, **options)
        self._count(len(inps))
        return logits

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> Any:
        tokens = super()._model_generate(context, max_length, stop, **options)
        self._count(len(context))
        return tokens

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: the result has it, and the harness would ask the hub."""
        return {}

    def _expect(self, requests: int) -> None:
        self._done, self._expected = 0, requests
        if requests:
            self._progress(0, requests)

    def _count(self, requests: int) -> None:
        """Answers that share a context may come of one row, so that fewer rows than requests may be all."""
        self._done += requests
        if self._expected:
            self._progress(min(self._done, self._expected), self._expected)

    def _finished(self, answers: Any) -> Any:
        if self._expected:
            self._progress(self._expected, self._expected)
        return answers
