"""A bundle as an ordinary dense model: its tensors decoded and handed to transformers under their names on disk.

transformers itself maps the names on disk to modules (prefixes, fused experts, tied weights), exactly as it does for
the source checkpoint, so that the model differs from the source's in the encoded weights alone.
"""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
import transformers

from kquant_cli.bundle import Bundle
from kquant_cli.hf.device_map import DeviceMap, with_offload
from kquant_cli.hf.model_class import chosen_class, read_config


def load_decoded(
    bundle: Bundle, auto_class: str, device_map: DeviceMap | None, dtype: torch.dtype | str
) -> tuple[transformers.PreTrainedModel, Collection[str]]:
    """The dense model of `bundle` under `auto_class`, and the names of the tensors that it lacks.

    `dtype` "auto" is the dtype of the source checkpoint.
    """
    config = dense_config(bundle)
    decoded = dict(bundle.tensors(dtype if isinstance(dtype, torch.dtype) else None))
    model_class: Any = chosen_class(auto_class, config)  # takes a state dict without a path, as no auto class does
    load = partial(
        model_class.from_pretrained,
        None,
        config=config,
        state_dict=decoded,
        dtype=dtype,
        output_loading_info=True,
        trust_remote_code=False,
    )
    model, info = with_offload(load, device_map)
    if (bundle.path / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(bundle.path)
    return model, info["missing_keys"]


def dense_config(bundle: Bundle) -> transformers.PreTrainedConfig:
    """The source checkpoint's config: the bundle's, without the part that says how its weights are encoded."""
    config = read_config(bundle.path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config
