"""LoRA and DoRA on layers that run from codes, as PEFT has them on other quantised layers.

    y = x W^T + bias + (alpha / r) B A x        W stays encoded and frozen, A and B are trained

PEFT has no place where a package could add a kind of layer, so this module, imported when PEFT's LoRA is
(kquant_autoload.py), puts itself before four of its functions: which layer an adapter gets, what "all-linear" means,
whether adapters may be merged, and which modules are trained whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import peft
from peft.tuners import tuners_utils
from peft.tuners.lora import model as lora_model
from peft.tuners.lora import variants
from peft.tuners.lora.config import LoraConfig
from peft.tuners.lora.layer import Linear
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from kquant_cli.errors import KQuantError
from kquant_cli.runtime.encoded_weight import EncodedWeight
from kquant_cli.runtime.linear import KashinLinear

STARTS = (True, False, "gaussian", "orthogonal", "eva")  # of A and B, without a change of the weight
UNMERGEABLE = (
    "an adapter cannot be merged into weights that stay encoded: decode the bundle with `kquant decompress`, load the "
    "adapter on that and merge it there, or keep it beside the bundle"
)


class KashinLoraLinear(Linear):
    """PEFT's LoRA layer around a `KashinLinear`, whose codes it never touches."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **others: Any) -> None:
        config = copy.copy(config)
        config.fan_in_fan_out = _base(base_layer).layout.transposed  # as `weight` is
        super().__init__(base_layer, adapter_name, config=config, **others)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        base: Any = module
        return base.in_features, base.out_features

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        """Those that do not change the weight; DoRA takes the norm of the decoded one."""
        return {(): None, ("use_dora",): variants.DoraLinearVariant}

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **others: Any) -> None:
        """Make an adapter; KQuantError where its start is to be taken from the weight, which then changes."""
        if config.init_lora_weights not in STARTS:
            raise KQuantError(
                f"init_lora_weights={config.init_lora_weights!r} changes the weights that an adapter is put on, and "
                f"those of a bundle stay encoded: choose True, 'gaussian' or 'orthogonal'"
            )
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **others)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """KQuantError: codes stay what they are."""
        raise KQuantError(UNMERGEABLE)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        """KQuantError where an adapter's tensors have other shapes than this layer's."""
        for name, parameter in self.named_parameters():
            given = state_dict.get(prefix + name)
            if name.startswith("lora_") and given is not None and given.shape != parameter.shape:
                raise KQuantError(
                    f"the adapter's tensor {prefix + name!r} has the shape {list(given.shape)}, where this model's "
                    f"layer needs {list(parameter.shape)}; load the adapter on the model that it was trained on"
                )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _base(target: Any) -> Any:
    """The module under the adapters that it may have."""
    return target.get_base_layer() if isinstance(target, tuners_utils.BaseTunerLayer) else target


def _dispatch(default: Callable[..., Any]) -> Callable[..., Any]:
    """The layer that an adapter on `target` gets, ours for a `KashinLinear`."""

    @wraps(default)
    def dispatch(target: Any, adapter_name: str, **others: Any) -> Any:
        if not isinstance(_base(target), KashinLinear) or others.get("parameter_name") is not None:
            return default(target, adapter_name, **others)
        if "config" not in others:
            raise KQuantError(f"LoRA on a bundle needs peft 0.20 or newer, and {peft.__version__} is installed")
        return KashinLoraLinear(target, adapter_name, **others)

    return dispatch


def _with_encoded(all_linear: Callable[..., Any]) -> Callable[..., Any]:
    """What "all-linear" names, with the encoded layers but the output head, which PEFT leaves out too."""

    @wraps(all_linear)
    def include(config: Any, model: Any) -> Any:
        targets = getattr(config, "target_modules", None)
        config = all_linear(config, model)
        if isinstance(targets, str) and targets.lower() == tuners_utils.INCLUDE_LINEAR_LAYERS_SHORTHAND:
            head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
            config.target_modules |= {
                name
                for name, module in model.named_modules()
                if isinstance(module, KashinLinear) and module is not head and not name.endswith(".base_layer")
            }
        return config

    return include


def _refuse_merging(check: Callable[..., None]) -> Callable[..., None]:
    """Refuse before the first layer is merged: a model may have dense ones, too."""

    @wraps(check)
    def refuse(self: Any) -> None:
        if any(isinstance(module, KashinLoraLinear) for module in self.model.modules()):
            raise KQuantError(UNMERGEABLE)
        check(self)

    return refuse


def _refuse_training(update: Callable[..., None]) -> Callable[..., None]:
    """Refuse `modules_to_save` of encoded modules, whose copies would be trained: codes have no gradients."""

    @wraps(update)
    def refuse(self: Any, *args: Any, **others: Any) -> None:
        if any(isinstance(module, EncodedWeight) for module in self.original_module.modules()):
            raise KQuantError(
                f"modules_to_save names a module that stays encoded ({type(self.original_module).__name__}), and codes "
                f"are not trained: take it out and have target_modules name it"
            )
        update(self, *args, **others)

    return refuse


def register() -> None:
    """Put ours before PEFT's, once: this module is imported once."""
    model: Any = lora_model
    model.dispatch_default = _dispatch(model.dispatch_default)
    model.LoraModel._check_merge_allowed = _refuse_merging(model.LoraModel._check_merge_allowed)
    saved: Any = ModulesToSaveWrapper
    saved.update = _refuse_training(saved.update)
    names: Any = tuners_utils
    names._maybe_include_all_linear_layers = _with_encoded(names._maybe_include_all_linear_layers)


register()
