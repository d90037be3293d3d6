"""Text that a causal language model writes itself: tokens sampled at temperature 1, each sequence from a random token.

As x_t ~ P(. | x_1 .. x_(t-1)), the squared gradients of the text's cross-entropy are samples of the Fisher information,
the curvature of the model's own KL divergence, which those of another's text are not. Where the tokenizer begins texts
with a token of its own, so do the sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from kquant_cli.errors import KQuantError
from kquant_cli.hf.blocks import last_logits
from kquant_cli.hf.limits import longest_input
from kquant_cli.hf.tokens import random_ids, vocabulary

LENGTH: Final = 512  # tokens of a sequence, where the model can have so many
TOGETHER: Final = {"cpu": 64, "cuda": 256}  # sequences sampled at once
FEWEST: Final = 2  # sequences
FIRST_ROOM: Final = 64  # tokens that a cache has room for at first


@torch.no_grad()  # not inference_mode: a backward pass is to use these tokens
def write_text(
    model: Any,
    tokens: int,
    *,
    seed: int,
    device: torch.device,
    first: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Token ids (sequences, length) that `model`, on `device`, samples: about `tokens` in all, as equal sequences.

    They are two or more, so that there are two halves.
    `first` begins every sequence, before a random token. `progress` is told of tokens. The same seed gives the same ids
    where the model computes the same.

    Raises
    ------
    KQuantError
        The model's logits are not finite.
    """
    longest = longest_input(model)
    length = max(2, min(LENGTH, tokens // FEWEST, LENGTH if longest is None else longest))
    count = max(FEWEST, -(-tokens // length))
    generator = torch.Generator().manual_seed(seed)
    size = min(vocabulary(model), model.config.get_text_config().vocab_size)
    begin = random_ids(model.config, size, count, lambda n, k: torch.randint(n, (k,), generator=generator))
    draws = torch.rand(count, length, generator=generator)
    ids = torch.empty(count, length, dtype=torch.int64)
    ids[:, 0] = begin if first is None else first
    given = 1
    if first is not None:
        ids[:, 1], given = begin, 2
    done = 0
    for part, drawn in zip(
        ids.split(TOGETHER.get(device.type, 64)), draws.split(TOGETHER.get(device.type, 64)), strict=True
    ):
        done += given * len(part)
        for _ in _continued(model, part, drawn, given, size, device):
            done += len(part)
            progress(done, ids.numel())
    return ids


def _continued(model: Any, ids: Tensor, draws: Tensor, given: int, size: int, device: torch.device) -> Any:
    """Fill ids (sequences, length) from the column `given` on, a column at a time."""
    cache, logits_of = growing_cache(model.config), last_logits(model)
    now = ids[:, :given].to(device)
    for at in range(given, ids.shape[1]):
        logits = logits_of(input_ids=now, past_key_values=cache, use_cache=True)
        likelihood = torch.softmax(logits[:, :size].float(), dim=-1).cumsum(dim=-1)
        if not torch.isfinite(likelihood[:, -1]).all():
            raise KQuantError(
                f"{model.config.name_or_path or 'the model'} computes logits that are not finite, so it cannot write "
                f"its own text: mend the checkpoint, or give --calibration FILE, random or none"
            )
        wanted = draws[:, at, None].to(device) * likelihood[:, -1:]
        now = torch.searchsorted(likelihood, wanted).clamp_max(size - 1)
        ids[:, at] = now[:, 0].cpu()
        yield at


def growing_cache(config: Any) -> Any:
    """transformers' cache for a model of that config; layers that keep all tokens grow in place, not by copies."""
    from transformers import DynamicCache  # noqa: PLC0415 (seconds to import)
    from transformers.cache_utils import DynamicLayer  # noqa: PLC0415

    class Growing(DynamicLayer):
        """Keys and values (sequences, heads, tokens, size) are views of tensors with room for more."""

        _room: tuple[Tensor, Tensor] | None = None

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            """As DynamicLayer's."""
            have = self.get_seq_length()
            need = have + key_states.shape[-2]
            if self._room is None or self._room[0].shape[-2] < need:
                wider = [
                    new.new_empty(*new.shape[:-2], max(FIRST_ROOM, 2 * need), new.shape[-1])
                    for new in (key_states, value_states)
                ]
                for room, old in zip(wider, (self.keys, self.values), strict=True):
                    if have and old is not None:
                        room[..., :have, :] = old
                self._room = (wider[0], wider[1])
                self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            for room, new in zip(self._room, (key_states, value_states), strict=True):
                room[..., have:need, :] = new
            self.keys, self.values = (room[..., :need, :] for room in self._room)
            return self.keys, self.values

    cache = DynamicCache(config=config)
    cache.layers = [Growing() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = Growing
    return cache
