"""A decoder layer of Llama's kind, one token at a time, in two calls on a CPU (native/decoder.h).

A token of a small model costs less in its products than in the dozens of small operations between them. Where nothing
speaks against it, a layer's norms, products, rotation, attention and activation are two calls, with the cache between
them, whatever cache that is; else its own `forward` runs: with several tokens or sequences, a mask, gradients, hooks
inside the layer, replaced modules (adapters), or under a compiler.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kquant_cli.runtime.cpu_layer import CpuLayer
from kquant_cli.runtime.layer_loops import NUMBERS, DecoderStruct, address, loops
from kquant_cli.runtime.linear import KashinLinear
from kquant_cli.runtime.torch_threads import parallel

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}  # package, prefix of classes
ATTENTIONS = ("sdpa", "eager")
PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


def fuse_layers(model: nn.Module) -> None:
    """Have the decoder layers that we know make single tokens in two calls."""
    for module in model.modules():
        if _is_known(module) and all(linear.ready for linear in _linears(module)):
            module.forward = DecoderStep(module)


def family(module: nn.Module) -> str:
    """The prefix of the family's classes in transformers ("Llama"), or nothing."""
    package = type(module).__module__.split(".")
    return FAMILIES.get(package[-2], "") if package[:2] == ["transformers", "models"] else ""


def _is_known(module: nn.Module) -> bool:
    prefix = family(module)
    if not prefix or type(module).__name__ != f"{prefix}DecoderLayer":
        return False
    attention: Any = module.self_attn
    return (
        attention.config.hidden_act == "silu"
        and attention.head_dim % 2 == 0
        and all(isinstance(linear, KashinLinear) for linear in _linears(module))
        and all(type(norm).__name__ == f"{prefix}RMSNorm" for norm in _norms(module) if norm is not None)
    )


def _linears(module: Any) -> list[Any]:
    return [getattr(parent, name) for parent, names in zip((module.self_attn, module.mlp), PRODUCTS, strict=True)
            for name in names]  # fmt: skip


def _norms(module: Any) -> tuple[Any, ...]:
    """Before attention, after it, and of the heads of q and k where there are such."""
    attention = module.self_attn
    heads = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
    return module.input_layernorm, module.post_attention_layernorm, *heads


class DecoderStep:
    """Takes the place of a decoder layer's `forward`."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self._made: LayerPlan | None = None

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **others: Any,
    ) -> Tensor:
        """As the layer's own `forward`."""
        if (
            attention_mask is None
            and past_key_values is not None
            and position_embeddings is not None
            and not torch.compiler.is_compiling()
            and is_one_token(hidden_states)
            and (plan := self.plan(hidden_states.dtype)) is not None
        ):
            return plan.step(hidden_states, *position_embeddings, past_key_values)
        forward: Any = type(self.module).forward
        y: Tensor = forward(
            self.module,
            hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **others,
        )
        return y

    def plan(self, dtype: torch.dtype) -> LayerPlan | None:
        """The layer's calls, in a model of this dtype; None: its modules are to run."""
        if self._made is None or self._made.dtype != dtype or not self._made.is_current():
            self._made = LayerPlan(self.module, dtype) if _can_be_planned(self.module, dtype) else None
        return self._made

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "_made": None}  # addresses belong to a process


def is_one_token(x: Tensor) -> bool:
    """Whether x (..., hidden) is one sequence's one token, for which nobody wants gradients."""
    return x.shape[:-1] == (1, 1) and x.dtype in NUMBERS and x.device.type == "cpu" and not torch.is_grad_enabled()


def _can_be_planned(module: Any, dtype: torch.dtype) -> bool:
    linears, attention = _linears(module), module.self_attn
    norms = [norm for norm in _norms(module) if norm is not None]
    return (
        not any(part.training for part in module.modules())
        and all(isinstance(linear, KashinLinear) and linear.ready for linear in linears)
        and linears[0].input_transform is linears[1].input_transform is linears[2].input_transform
        and linears[4].input_transform is linears[5].input_transform
        and all(norm.weight.dtype == dtype and norm.weight.device.type == "cpu" for norm in norms)
        and attention.config._attn_implementation in ATTENTIONS
        and not any(_has_hooks(part) for _, _, part in _parts(module))
    )


def _parts(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, nn.Module]]:
    """Every module inside, and where it stands."""
    for parent in module.modules():
        for name, part in parent._modules.items():
            if part is not None:
                yield parent._modules, name, part


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


class LayerPlan:
    """The calls of one layer, with all that they read."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        attention, norms = module.self_attn, _norms(module)
        q, k, v, o, gate, up, down = _linears(module)
        self.dtype, self.index, self._parts = dtype, attention.layer_idx, list(_parts(module))
        self._layers = [CpuLayer(layers) for layers in ([q, k, v], [o], [gate, up], [down])]
        weights: list[Tensor | None] = [None if norm is None else norm.weight for norm in norms]
        self._weights = [(weight, weight.data_ptr()) for weight in weights if weight is not None]
        self._kept = [weight.detach() for weight, _ in self._weights]  # whoever else lets go
        size = attention.head_dim
        heads, kv_heads = q.out_features // size, k.out_features // size
        self._rows_q, self.cached, self._strides = q.out_features, (2, 1, kv_heads, 1, size), ctypes.c_long * 4
        self._struct = DecoderStruct(
            *(layer.address for layer in self._layers),
            *map(address, weights),
            dtype=NUMBERS[dtype],
            heads=heads,
            kv_heads=kv_heads,
            head_size=size,
            epsilon=norms[0].variance_epsilon,
            epsilon_after=norms[1].variance_epsilon,
            epsilon_heads=0.0 if norms[2] is None else norms[2].variance_epsilon,
            scaling=attention.scaling,
        )
        self.address = ctypes.addressof(self._struct)

    def is_current(self) -> bool:
        """Whether the layer's modules and tensors are still those of the plan, and nobody looks in between."""
        for parent, name, part in self._parts:  # plain loops: this is asked at every token of every layer
            if parent.get(name) is not part or part._forward_hooks or part._forward_pre_hooks:
                return False
            if "forward" in part.__dict__ or part.training:
                return False
        for weight, pointer in self._weights:
            if weight.data_ptr() != pointer:
                return False
        return all(layer.is_current() for layer in self._layers)

    def step(self, x: Tensor, cosine: Tensor, sine: Tensor, cache: Any) -> Tensor:
        """y (1, 1, hidden) of x (1, 1, hidden); cosine and sine (1, 1, head_dim) of its position."""
        threads, openmp, library = torch.get_num_threads(), parallel(), loops()
        x, cosine, sine = x.contiguous(), cosine.contiguous(), sine.contiguous()
        q = torch.empty(self._rows_q)
        key, value = x.new_empty(self.cached)
        begin = (self.address, x.data_ptr(), cosine.data_ptr(), sine.data_ptr(), q.data_ptr(), key.data_ptr())
        if library.kquant_decoder_begin(*begin, value.data_ptr(), threads, openmp):
            raise MemoryError("no memory for a decoder layer's products")
        keys, values = cache.update(key, value, self.index)
        if keys.dtype != self.dtype or keys.stride(-1) != 1 or values.stride(-1) != 1:
            keys, values = keys.to(self.dtype).contiguous(), values.to(self.dtype).contiguous()
        y = torch.empty_like(x)
        strides = self._strides(keys.stride(1), keys.stride(2), values.stride(1), values.stride(2))
        end = (self.address, x.data_ptr(), q.data_ptr(), keys.data_ptr(), values.data_ptr(), ctypes.addressof(strides))
        if library.kquant_decoder_end(*end, keys.shape[-2], y.data_ptr(), threads, openmp):
            raise MemoryError("no memory for a decoder layer's products")
        return y
