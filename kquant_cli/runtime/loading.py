"""Loads what the user names, a hub id, a model folder or a bundle, as a transformers model that is safe to measure."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from kquant_cli import bundle as bundles
from kquant_cli.bundle.format import read_json
from kquant_cli.checkpoint import local_folder
from kquant_cli.devices import resolve_device
from kquant_cli.errors import KQuantError
from kquant_cli.hf.device_map import DeviceMap
from kquant_cli.hf.loading import LoadedModel, load_complete, load_dense, or_sentence, require_complete, settle
from kquant_cli.runtime.cannot_run import CannotRunFromCodesError
from kquant_cli.runtime.decoded_model import load_decoded
from kquant_cli.runtime.folder_check import verify_folder
from kquant_cli.runtime.quantizer import is_from_bundle, register


def load_model(
    path_or_id: str | Path,
    *,
    auto_class: str = "AutoModelForCausalLM",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device_map: DeviceMap | None = None,
) -> LoadedModel:
    """Load a dense model (hub id or folder) or a bundle, which runs from its codes, ready to evaluate.

    A bundle whose matrices are no linear layers' in transformers' model (fused experts) is decoded: `decoded` says why.
    Options and errors are those of `load_dense` (hf/loading.py).
    """
    folder = local_folder(path_or_id, revision)
    if folder is not None and bundles.is_bundle(folder):
        return _load_bundle(folder, auto_class, *settle(device, dtype, device_map))
    loaded = load_dense(
        path_or_id, auto_class=auto_class, device=device, dtype=dtype, revision=revision, device_map=device_map
    )
    return replace(loaded, kind="bundle") if is_from_bundle(loaded.model) else loaded  # one on the hub


def running_dtype(path_or_id: str | Path, device: str | torch.device, dtype: str) -> str:
    """What `auto` means where speed counts: a bundle on a CPU runs in the source's dtype, as on a GPU; else `dtype`."""
    folder = Path(path_or_id)
    if dtype != "auto" or resolve_device(device).type != "cpu" or not bundles.is_bundle(folder):
        return dtype
    config = read_json(folder / "config.json")
    found = config.get("dtype") or config.get("torch_dtype")
    return found if found in ("float16", "bfloat16") else dtype


def load_from_codes(
    path: str, auto_class: str, device_map: Any, dtype: torch.dtype | str, revision: str | None = None
) -> transformers.PreTrainedModel:
    """The bundle at `path` (a folder, or an id on the hub) as a model whose encoded layers run from their codes."""
    register()
    model = load_complete(path, auto_class, device_map, dtype, revision, f"bundle {path}")
    if not is_from_bundle(model):
        raise KQuantError(f"{path} is no bundle: give one that `kquant compress` wrote")
    return model.eval()


def _load_bundle(
    folder: Path, auto_class: str, device_map: DeviceMap | None, dtype: torch.dtype | Literal["auto"]
) -> LoadedModel:
    path = str(folder)
    verify_folder(folder)
    try:
        return LoadedModel(load_from_codes(path, auto_class, device_map, dtype), "bundle", path)
    except CannotRunFromCodesError as error:
        why = error.reason
    bundle = bundles.open_bundle(folder, verify=False)
    model, missing = or_sentence(lambda: load_decoded(bundle, auto_class, device_map, dtype), f"bundle {path}")
    require_complete(path, auto_class, model, missing)
    return LoadedModel(model.eval(), "bundle", path, decoded=why)
