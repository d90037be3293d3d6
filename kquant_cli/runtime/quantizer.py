"""The quantiser `kashin` of transformers: `from_pretrained` of a bundle gives a model that runs from its codes.

transformers builds the model without weights, has `_process_model_before_weight_loading` put our layers into it, and
then loads the bundle's tensors under their own names: a tensor that is missing would only be warned of and stay
uninitialised, so headers and config are compared before. Everything heavier than the two classes is imported inside the
methods, as this module is imported in the midst of transformers' own import (kquant_autoload.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from kquant_cli.bundle.format import FORMAT_VERSION, QUANT_METHOD
from kquant_cli.errors import KQuantError
from kquant_cli.files.model_sizes import oversized

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KashinConfig(QuantizationConfigMixin):
    """`quantization_config` of a bundle: how every encoded matrix decodes, by its module name on disk (encoded.py)."""

    def __init__(
        self,
        modules: Any = None,
        format_version: int = FORMAT_VERSION,
        quant_method: str = QUANT_METHOD,
        resaved: bool = False,
        **unknown: Any,
    ) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]
        self.format_version = format_version
        self.modules = modules
        self.resaved = resaved  # by `save_pretrained`, which writes no manifest
        self.unknown = sorted(unknown)  # of a newer format, which is then refused for its version

    def to_dict(self) -> dict[str, Any]:
        """For config.json, as `save_pretrained` writes it."""
        return {
            "quant_method": self.quant_method,
            "format_version": self.format_version,
            "modules": copy.deepcopy(self.modules),
            "resaved": True,
        }


class KashinQuantizer(HfQuantizer):
    """Puts `KashinLinear` and `KashinEmbedding` where the bundle has encoded matrices; all else loads dense."""

    requires_calibration = True  # a dense model is not encoded as it loads: `kquant compress` does that
    quantization_config: KashinConfig

    def update_attn_implementation(self, config: Any) -> Any:
        """Called with the config before transformers makes the model of it: refused where that would take for ever."""
        if why := oversized(config.to_dict()):
            raise KQuantError(f"the bundle's config.json: {why}; the bundle is damaged, make it again")
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        from kquant_cli.runtime.replace_layers import place_layers

        if not checkpoint_files:
            raise KQuantError(
                "a bundle loads from its files, not from a state dict: give from_pretrained the bundle's folder or id"
            )
        files = [Path(file) for file in checkpoint_files]
        found = self.quantization_config
        found.modules = place_layers(model, found.to_dict() | {"resaved": found.resaved}, files)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        from kquant_cli.native import make_ready
        from kquant_cli.runtime.decoder_stack import fuse
        from kquant_cli.runtime.encoded_weight import EncodedWeight
        from kquant_cli.runtime.first_parameter import put_dense_first
        from kquant_cli.runtime.output_head import quicken
        from kquant_cli.runtime.replace_layers import encoded_weights, lay_out
        from kquant_cli.runtime.tied_modules import FixedVocabulary

        put_dense_first(model)
        ends = (model.get_output_embeddings(), _input_embeddings(model))
        if any(isinstance(end, EncodedWeight) for end in ends):
            model.__dict__["resize_token_embeddings"] = FixedVocabulary(model)
        devices = set()
        for _, layer in encoded_weights(model):
            for name in layer.layout.tensor_shapes():
                getattr(layer, name).requires_grad_(False)  # transformers sets it for every floating-point tensor
            device = layer.weight_codes.device
            devices.add(device.type)
            if device.type != "meta":  # on disk: accelerate brings it to the input's device at every call
                layer.channel_scale = [scale.to(device) for scale in layer.channel_scale]
        if "cpu" in devices and model.dtype != torch.float64:  # 16-bit models compute in float32 on a CPU
            make_ready()
        if devices == {"cpu"}:  # and none that accelerate takes elsewhere at every call
            lay_out(model)
            fuse(model)
            quicken(model)
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        from kquant_cli.runtime.replace_layers import make_dense

        return make_dense(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)  # a name once it was saved

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """`save_pretrained` writes the codes as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """With adapters (peft_lora.py): without them transformers refuses, as codes have no gradients."""
        return True


def _input_embeddings(model: PreTrainedModel) -> Any:
    """None where the model reads no tokens: transformers' classes for sounds and images raise then."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def register() -> None:
    """Tell transformers of both classes, once."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(KashinConfig)
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(QUANT_METHOD)(KashinQuantizer)


def is_from_bundle(model: PreTrainedModel) -> bool:
    """Whether our quantiser loaded the model."""
    return isinstance(getattr(model, "hf_quantizer", None), KashinQuantizer)


register()
