"""Models spread by accelerate over several devices, so that one larger than a GPU runs too.

What the GPUs have no room for stays on the CPU or on disk and comes to the GPU when it is its turn. transformers reads
safetensors on disk where they are; what it must write again goes to a temporary folder, which goes with the model.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import torch

from kquant_cli.errors import KQuantError
from kquant_cli.suggestions import near

T = TypeVar("T")
# The name of a way to spread, or for each module where it goes: a device, its number, "cpu" or "disk".
DeviceMap = str | Mapping[str, str | int | torch.device]

WAYS: Final = ("auto", "balanced", "sequential")


def require_way(device_map: DeviceMap, device: str | torch.device) -> None:
    """Raise KQuantError for a name that accelerate does not know, or where a `device` was asked for as well."""
    if isinstance(device_map, str) and device_map not in WAYS:
        meant = near(device_map, WAYS) or WAYS
        raise KQuantError(f"device map {device_map!r} is not known: use {' or '.join(meant)}")
    if str(device) != "auto":
        raise KQuantError(
            f"a device map spreads the model over all devices, and device '{device}' is one of them: leave one out"
        )


def with_offload(load: Callable[..., tuple[Any, T]], device_map: Any) -> tuple[Any, T]:
    """What `load(device_map=..., offload_folder=...)` returns, a model first, with a folder for what goes to disk.

    The folder is removed with the model, or at once where there is none.
    """
    if device_map is None or (isinstance(device_map, Mapping) and set(device_map) == {""}):
        return load(device_map=device_map, offload_folder=None)
    folder = tempfile.mkdtemp(prefix="kquant-offload-")
    try:
        model, more = load(device_map=device_map, offload_folder=folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model, more


def input_device(model: Any) -> torch.device:
    """Where the inputs of `model` belong: of a model that is spread, the first device that computes."""
    places = list((getattr(model, "hf_device_map", None) or {}).values())
    if not places:
        device: torch.device = model.device
        return device
    computing = [place for place in places if str(place) not in ("cpu", "disk")]
    return torch.device(computing[0] if computing else "cpu")


def devices_in_words(model: Any) -> str:
    """The kinds of devices that hold the weights of `model`, such as cuda, or cuda+cpu+disk."""
    spread = (getattr(model, "hf_device_map", None) or {}).values()
    kinds = [str(place) if str(place) == "disk" else torch.device(place).type for place in spread]
    return "+".join(dict.fromkeys(kinds)) or str(model.device.type)
