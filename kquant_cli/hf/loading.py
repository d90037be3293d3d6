"""Loads a dense model that the user names, a hub id or a folder, through transformers, safe to measure.

transformers fills tensors that a checkpoint lacks with random numbers and only warns; here that is an error. Code that
comes with a checkpoint is never run: transformers' default would ask on a terminal.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import transformers

from kquant_cli.checkpoint import local_folder
from kquant_cli.checkpoint.config_files import read_config
from kquant_cli.checkpoint.file_roles import ADAPTER_CONFIG, CONFIG, require_model
from kquant_cli.devices import resolve_device, resolve_dtype
from kquant_cli.errors import KQuantError
from kquant_cli.hf.device_map import DeviceMap, devices_in_words, input_device, require_way, with_offload
from kquant_cli.hf.failures import FAILURES, VALUE_FAILURES, code_sentence, first_line, needs_code
from kquant_cli.hf.generation_config import require_generation_config
from kquant_cli.hf.tokens import read_tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class LoadedModel:
    """A transformers model in evaluation mode, and where it came from."""

    model: transformers.PreTrainedModel
    kind: Literal["dense", "bundle"]
    path: str
    revision: str | None = None
    decoded: str = ""  # why a bundle does not run from its codes, but from a dense copy

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's floating point parameters."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""
        return input_device(self.model)

    @property
    def devices(self) -> str:
        """The kinds of devices that hold the weights, such as cpu, or cuda+disk where they are spread."""
        return devices_in_words(self.model)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer beside the weights, read when first asked for; KQuantError where it cannot be used."""
        return read_tokenizer(self.path, self.revision)


def load_dense(
    path_or_id: str | Path,
    *,
    auto_class: str = "AutoModelForCausalLM",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device_map: DeviceMap | None = None,
) -> LoadedModel:
    """Load a hub id or folder, ready to evaluate.

    `auto_class` names transformers' class that gives the model its head; `device` is auto (the GPU where there is one),
    cpu or cuda; `dtype` is a torch dtype or its name, where auto or None mean float32 on the CPU and the checkpoint's
    own on a GPU; `revision` is a branch, tag or commit of a model on the hub. `device_map`, in place of a device,
    spreads the model over GPUs, CPU and disk: auto, balanced, sequential, or a device for each module.

    Raises
    ------
    KQuantError
        There is nothing to load, the checkpoint is damaged, or it has not the head that `auto_class` means.
    """
    folder = model_folder(path_or_id, revision)
    path = str(folder or path_or_id)
    if folder is not None:
        read_config(folder / CONFIG)  # which says where transformers would make objects without end
    device_map, resolved = settle(device, dtype, device_map)
    what = path if folder is not None else f"{path} (no folder here, so taken for a model on the hub)"
    model = load_complete(path, auto_class, device_map, resolved, revision, what)
    return LoadedModel(model.eval(), "dense", path, revision)


def to_own_memory(model: transformers.PreTrainedModel) -> None:
    """Copy what is on the CPU, so that nothing that happens to the checkpoint's files changes or stops the model.

    Of tensors whose dtype stays transformers has the pages of the file: one is read when it is first used, which may be
    hours later, and to use one that the file has lost ends the process. Nothing in a tensor says that it is such a one.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def model_folder(path_or_id: str | Path, revision: str | None = None) -> Path | None:
    """The folder of a model, None for one on the hub; KQuantError for a place that is here and no model."""
    folder = local_folder(path_or_id, revision)
    if folder is not None:
        require_model([name for name in (CONFIG, ADAPTER_CONFIG) if (folder / name).is_file()], str(folder))
    return folder


def settle(
    device: str | torch.device, dtype: str | torch.dtype | None, device_map: DeviceMap | None
) -> tuple[DeviceMap | None, torch.dtype | Literal["auto"]]:
    """The device map and the dtype that these mean; raises KQuantError for what cannot be had."""
    if device_map is not None:
        require_way(device_map, device)
    placed = resolve_device(device)
    if device_map is None and placed.type != "cpu":
        device_map = {"": placed}
    return device_map, resolve_dtype(dtype, placed)


def load_complete(
    path: str, auto_class: str, device_map: Any, dtype: torch.dtype | str, revision: str | None, what: str
) -> transformers.PreTrainedModel:
    """What transformers loads, complete; its failures as one sentence about `what`."""
    require_generation_config(path)
    model, missing = or_sentence(lambda: _from_pretrained(path, auto_class, device_map, dtype, revision), what)
    require_complete(path, auto_class, model, missing)
    return model


def _from_pretrained(
    path: str, auto_class: str, device_map: Any, dtype: torch.dtype | str, revision: str | None
) -> tuple[transformers.PreTrainedModel, Collection[str]]:
    load = partial(
        getattr(transformers, auto_class).from_pretrained,
        path,
        dtype=dtype,
        revision=revision,
        output_loading_info=True,
        trust_remote_code=False,
    )
    model, info = with_offload(load, device_map)
    return model, info["missing_keys"]


def require_complete(path: str, auto_class: str, model: transformers.PreTrainedModel, missing: Collection[str]) -> None:
    """KQuantError where tensors are missing, or the model is not of the kind that the auto class means."""
    named = getattr(model.config, "architectures", None)
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    if auto_class == "AutoModelForCausalLM" and (
        getattr(model.config, "is_encoder_decoder", False)
        or any(name.endswith("ForMaskedLM") for name in architectures)
    ):
        raise KQuantError(
            f"{path} ({', '.join(architectures)}) is no causal language model, which this needs: "
            "it does not predict each token from those before it"
        )
    if missing:
        names = sorted(missing)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise KQuantError(
            f"{path} lacks tensors that {type(model).__name__} needs ({shown}): "
            "it is damaged, or a model with another head (its config.json says: "
            f"{', '.join(architectures) or 'no architecture'})"
        )


def or_sentence(load: Callable[[], T], what: str) -> T:
    """What `load` returns; its own failure as one sentence about `what`."""
    try:
        return load()
    except FAILURES as error:
        if needs_code(error):
            raise KQuantError(_code_sentence(what)) from error
        raise KQuantError(f"{what} cannot be loaded: {_reason(error).rstrip('.')}") from error


def _reason(error: Exception) -> str:
    """What `error` says in one line: the first, except where only all of them name the value that does not fit."""
    if isinstance(error, VALUE_FAILURES):
        said = " ".join(str(error).split())
        return f"its {CONFIG} seems to hold a value that transformers cannot use ({type(error).__name__}: {said})"
    return first_line(error, type(error).__name__)


def _code_sentence(what: str) -> str:
    return f"{code_sentence(what, ' (auto_map)')}: give a model that transformers itself knows"
