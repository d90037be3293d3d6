"""All decoder layers of a model of Llama's kind for one token in one call on a CPU (native/decoder.h).

Between two calls into compiled loops Python finds its own memory gone from the processor's cache, where the weights
have passed: of a small model's token that is a third. So where the cache is transformers' plain one, the layers and the
norm after them are one call, which adds to the cache itself: keys and values get room for tokens to come, in place of a
copy at every token. Everything else goes layer by layer (decoder_step.py). KQUANT_FUSED=0 asks for modules always.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from kquant_cli.runtime.decoder_step import DecoderStep, family, fuse_layers, is_one_token
from kquant_cli.runtime.layer_loops import StackedStruct, loops
from kquant_cli.runtime.torch_threads import parallel

ROOM = 256  # tokens that a cache's memory grows by, at least


def fuse(model: nn.Module) -> None:
    """Have every stack of decoder layers that we know make single tokens in one call, or in two a layer."""
    if os.environ.get("KQUANT_FUSED") == "0":
        return
    fuse_layers(model)
    for module in model.modules():
        prefix = family(module)
        if prefix and type(module).__name__ == f"{prefix}Model" and type(module.norm).__name__ == f"{prefix}RMSNorm":
            module.forward = DecoderStack(module)


class DecoderStack:
    """Takes the place of the `forward` of a model without its head."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self._room: WeakKeyDictionary[Any, tuple[Tensor, Tensor]] = WeakKeyDictionary()

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> Any:
        """As the model's own `forward`."""
        if (
            input_ids is not None
            and inputs_embeds is None
            and input_ids.shape == (1, 1)
            and type(past_key_values) is DynamicCache
            and use_cache is not False
            and not torch.compiler.is_compiling()
            and not any(value for name, value in others.items() if name != "cache_position")
            and (y := self._step(input_ids, attention_mask, position_ids, past_key_values)) is not None
        ):
            return BaseModelOutputWithPast(last_hidden_state=y, past_key_values=past_key_values)
        forward: Any = type(self.module).forward
        return forward(
            self.module,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **others,
        )

    def _step(
        self, input_ids: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: DynamicCache
    ) -> Tensor | None:
        """The last hidden state (1, 1, hidden); None, with nothing done, where the modules are to run."""
        module, config = self.module, self.module.config
        layers = module.layers[: config.num_hidden_layers]
        past = cache.get_seq_length()
        if (
            not past
            or config.output_hidden_states
            or config.output_attentions
            or not config.return_dict
            or (mask is not None and (mask.shape != (1, past + 1) or not mask.all()))
            or any(_is_watched(layer) for layer in layers)
        ):
            return None
        x = module.embed_tokens(input_ids)
        if not is_one_token(x) or module.norm.weight.dtype != x.dtype or _is_watched(module.norm, "forward"):
            return None
        plans = [layer.forward.plan(x.dtype) for layer in layers]
        if None in plans or len(cache.layers) < len(plans):
            return None
        stacked = (StackedStruct * len(plans))()
        for plan, into in zip(plans, stacked, strict=True):
            kept = cache.layers[plan.index]
            if type(kept) is not DynamicLayer or kept.keys is None or kept.keys.shape[-2] != past:
                return None
            if kept.keys.shape[1] != plan.cached[2] or kept.keys.dtype != x.dtype or kept.keys.device != x.device:
                return None
            keys, values = self._with_room(kept)
            into.decoder, into.keys, into.values = plan.address, keys.data_ptr(), values.data_ptr()
            into.key_head, into.key_token, into.value_head, into.value_token = 2 * (keys.stride(1), keys.stride(2))
        if position_ids is None:
            position_ids = torch.full((1, 1), past)
        cosine, sine = module.rotary_emb(x, position_ids=position_ids)
        y, length, norm = torch.empty_like(x), past + 1, module.norm
        addresses = (t.data_ptr() for t in (x, cosine.contiguous(), sine.contiguous()))
        after = (norm.weight.data_ptr(), norm.variance_epsilon, y.data_ptr(), torch.get_num_threads(), parallel())
        if loops().kquant_decoder_stack(ctypes.addressof(stacked), len(plans), *addresses, length, *after):
            raise MemoryError("no memory for a decoder layer's products")
        for plan in plans:
            kept = cache.layers[plan.index]
            kept.keys, kept.values = (room.narrow(2, 0, length) for room in self._room[kept])
        return y

    def _with_room(self, kept: Any) -> tuple[Tensor, Tensor]:
        """Memory (1, kv_heads, tokens, head_size) of keys and of values that begins with the cache's, and has room."""
        keys, values, past = kept.keys, kept.values, kept.keys.shape[-2]
        room = self._room.get(kept)
        if room is None or past == room[0].shape[2] or not (_same(keys, room[0]) and _same(values, room[1])):
            shape = (*keys.shape[:2], past + max(ROOM, past // 2), keys.shape[3])
            room = keys.new_empty(shape), values.new_empty(shape)
            room[0][:, :, :past], room[1][:, :, :past] = keys, values
            self._room[kept] = room
        return room

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["module"])  # type: ignore[misc]


def _same(part: Tensor, whole: Tensor) -> bool:
    """Whether one begins where the other does."""
    return part.data_ptr() == whole.data_ptr() and part.stride() == whole.stride()


def _is_watched(module: Any, *also: str) -> bool:
    """Whether hooks, or another `forward` than ours, would notice that a module does not run."""
    own = module.__dict__.get("forward")
    replaced = own is not None if also else type(own) is not DecoderStep
    return bool(module._forward_hooks or module._forward_pre_hooks) or replaced
