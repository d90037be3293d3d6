"""What a classifier gives for texts: padded batches, longest first, masked so that the batch changes nothing."""

import inspect
from collections.abc import Sequence
from typing import Any, Final

import torch

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.batching import longest_first
from kquant_cli.evaluation.options import Progress
from kquant_cli.evaluation.precision import full_float32
from kquant_cli.evaluation.result import dtype_name
from kquant_cli.hf.limits import longest_input
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.hf.tokens import encode, require_known, tokenizer_of

MAX_LENGTH: Final = 128  # run_glue's max_seq_length
BATCH_TOKENS: Final = {"cpu": 1024, "cuda": 32768}


def outputs(
    loaded: LoadedModel, texts: Sequence[tuple[str, ...]], length: int, progress: Progress
) -> tuple[torch.Tensor, int]:
    """The model's outputs (examples, outputs) for `texts`, float64 on the CPU, and how many texts were cut to `length`.

    Pairs are encoded as the tokenizer pairs texts, and cut from the longer of the two, as run_glue does.
    """
    tokenizer = loaded.tokenizer
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = encode(tokenizer, *columns, truncation=True, max_length=length)
    rows = encoded["input_ids"]
    require_known(loaded.path, loaded.model, torch.tensor([max(row, default=0) for row in rows]))
    full = [index for index, row in enumerate(rows) if len(row) == length]
    whole = encode(tokenizer, *([column[index] for index in full] for column in columns)) if full else None
    shortened = 0 if whole is None else sum(len(row) > length for row in whole["input_ids"])
    keys = [key for key in encoded if key in inspect.signature(loaded.model.forward).parameters]
    model: Any = loaded.model
    found = torch.empty(len(rows), model.config.num_labels, dtype=torch.float64)
    done = 0
    with torch.inference_mode(), full_float32():
        for batch in longest_first([len(row) for row in rows], lambda longest: _batch_size(loaded, longest)):
            inputs: dict[str, Any] = {key: [encoded[key][index] for index in batch] for key in keys}
            if len(batch) > 1:
                with tokenizer_of(loaded.path):
                    inputs = tokenizer.pad(inputs, verbose=False)
            logits = model(**{key: torch.tensor(inputs[key], device=loaded.device) for key in keys}).logits
            found[batch] = logits.double().cpu()
            done += len(batch)
            progress(done, len(rows))
    if not found.isfinite().all():
        raise KQuantError(f"an output of {loaded.path} in {dtype_name(loaded)} is not a number: try --dtype float32")
    return found, shortened


def longest_example(loaded: LoadedModel, asked: int | None) -> int:
    """How many tokens of an example the model reads: `asked`, or run_glue's 128, and no more than it can."""
    maximum, bound = longest_input(loaded.model), loaded.tokenizer.model_max_length
    bound = bound if maximum is None else min(bound, maximum)
    if asked is None:
        return min(MAX_LENGTH, bound)
    least = loaded.tokenizer.num_special_tokens_to_add(pair=True) + 2
    if not least <= asked <= bound:
        raise KQuantError(f"--seqlen {asked} must be from {least} to the {bound} tokens that {loaded.path} can read")
    return asked


def _batch_size(loaded: LoadedModel, length: int) -> int:
    """How many examples of `length` tokens at once; one where nothing can be padded.

    Decoders find an example's end by the padding token of their config, and refuse batches without one.
    """
    if loaded.tokenizer.pad_token_id is None or loaded.model.config.pad_token_id is None:
        return 1
    return max(1, BATCH_TOKENS.get(loaded.device.type, BATCH_TOKENS["cpu"]) // length)
