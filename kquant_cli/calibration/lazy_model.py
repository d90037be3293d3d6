"""A checkpoint as a transformers model whose parameters are still on disk, each read when its module runs.

transformers maps the names on disk to parameters exactly as it does when it loads the checkpoint (lazy_tensor.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
import transformers

from kquant_cli.calibration.lazy_parameters import load_on_demand
from kquant_cli.calibration.lazy_tensor import LazyTensor
from kquant_cli.calibration.unavailable import StatisticsUnavailable, or_unavailable
from kquant_cli.checkpoint import Checkpoint
from kquant_cli.hf.model_class import chosen_class, named_class, read_config
from kquant_cli.hf.quiet import quiet


def load_lazy_model(checkpoint: Checkpoint, device: torch.device) -> transformers.PreTrainedModel:
    """The model of `checkpoint` in evaluation mode, its parameters on disk, to run on `device`.

    It computes in float32 on the CPU, and in the checkpoint's own dtype elsewhere. The class is the one that the config
    names, else the causal language model; where the checkpoint has no head, the model without one.

    Raises StatisticsUnavailable when transformers does not know the architecture, needs code that comes with the
    checkpoint, finds tensors missing, or when the model is no language model of one stack.
    """
    with quiet(), or_unavailable(checkpoint.name):
        config = read_config(checkpoint.path)
        if config.is_encoder_decoder:
            raise StatisticsUnavailable(f"{checkpoint.name} has an encoder and a decoder: not one stack of blocks")
        for model_class in _classes(config):
            model, missing = _build(checkpoint, config, model_class, device)
            if not missing:
                break
        else:
            raise StatisticsUnavailable(
                f"{checkpoint.name} lacks tensors that transformers' {type(model).__name__} needs "
                f"({min(missing)}{', ...' if len(missing) > 1 else ''})"
            )
        if model.main_input_name != "input_ids":
            raise StatisticsUnavailable(f"{checkpoint.name} is no language model: it reads {model.main_input_name}")
        for part in (model.config, model.config.get_text_config()):
            part.use_cache = False  # keys and values of all blocks would stay in memory
    load_on_demand(model, device)
    return model.eval()


def _classes(config: Any) -> Iterator[type[transformers.PreTrainedModel]]:
    """The classes to try, the best first."""
    named = named_class(config.architectures)
    if named is not None:
        yield named
    else:
        with suppress(ValueError):  # no such head for this architecture
            causal = chosen_class("AutoModelForCausalLM", config)
            yield causal
    yield chosen_class("AutoModel", config)


def _build(
    checkpoint: Checkpoint, config: Any, model_class: Any, device: torch.device
) -> tuple[transformers.PreTrainedModel, set[str]]:
    """The model, and the names of the parameters that nothing on disk fills."""
    state = {
        name: LazyTensor.on_disk(info.shape, info.dtype, lambda name=name: checkpoint.read(name))  # type: ignore[misc]
        for name, info in checkpoint.tensors.items()
    }
    for name, kept in checkpoint.tied.items():
        state[name] = state[kept]
    model, info = model_class.from_pretrained(
        None,
        config=deepcopy(config),
        state_dict=state,
        dtype=torch.float32 if device.type == "cpu" else "auto",
        output_loading_info=True,
        trust_remote_code=False,
    )
    return model, set(info["missing_keys"])
