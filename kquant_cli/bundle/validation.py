"""What a bundle's config says of its matrices, and whether the stored tensors agree: checked before any is decoded.

Used by the reader of whole bundles, and by the loading of models, which knows config and files alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from kquant_cli.bundle.faults import Fault, refuse
from kquant_cli.bundle.format import CONFIG, FORMAT_VERSION, READ_VERSIONS
from kquant_cli.encoded import Layout, UnknownGridError
from kquant_cli.errors import KQuantError, shortened
from kquant_cli.files.safetensors_format import TensorInfo


def require_version(version: object, path: Path) -> None:
    """KQuantError unless the bundle in the folder `path` has a format that is read here."""
    if type(version) is not int or version < 1:
        raise KQuantError(
            f"{path / CONFIG}: format_version is {shortened(version)}, expected a number; make the bundle again"
        )
    if version not in READ_VERSIONS:
        what = "upgrade kashin-quant" if version > FORMAT_VERSION else "make the bundle again"
        formats = f"{min(READ_VERSIONS)} to {max(READ_VERSIONS)}"
        raise KQuantError(f"{path}: the bundle has format {version}, this kquant reads formats {formats}; {what}")


def read_layouts(path: Path, quantization: Mapping[str, Any]) -> dict[str, Layout]:
    """The layout of every encoded matrix by its module name on disk, from `quantization_config`."""
    layouts, faults = find_layouts(path, quantization)
    refuse(faults)
    return layouts


def find_layouts(path: Path, quantization: Mapping[str, Any]) -> tuple[dict[str, Layout], list[Fault]]:
    """The layouts that can be read, and what is wrong with the others."""
    modules = quantization.get("modules")
    if not isinstance(modules, dict):
        why = f"{path / CONFIG}: quantization_config has no modules; the bundle is damaged, make it again"
        return {}, [Fault(CONFIG, why)]
    layouts, faults = {}, []
    for name, values in modules.items():
        try:
            layouts[name] = Layout.from_dict(values)
        except UnknownGridError as error:
            faults.append(
                Fault(
                    name,
                    f"{path / CONFIG}: module {name!r} of quantization_config has {error}, expected one that this "
                    f"kquant knows; upgrade kashin-quant",
                )
            )
        except (KeyError, TypeError, ValueError, AttributeError, KQuantError) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            faults.append(
                Fault(
                    name,
                    f"{path / CONFIG}: module {name!r} of quantization_config cannot be read ({why}); the bundle is "
                    f"damaged, make it again",
                )
            )
    return layouts, faults


def require_tensors(path: Path, infos: Mapping[str, TensorInfo], layouts: Mapping[str, Layout]) -> None:
    """KQuantError unless the stored tensors are those that the layouts ask for, none missing, wrong or left over."""
    refuse(tensor_faults(path, infos, layouts))


def tensor_faults(path: Path, infos: Mapping[str, TensorInfo], layouts: Mapping[str, Layout]) -> Iterator[Fault]:
    """Where the stored tensors are not those that the layouts ask for: missing, wrong or left over."""
    for module, layout in layouts.items():
        for suffix, shape in layout.tensor_shapes().items():
            name = f"{module}.{suffix}"
            info = infos.get(name)
            if info is None or info.shape != shape:
                found = f"one of shape {shortened(list(info.shape))}" if info else "none"
                yield Fault(
                    name,
                    f"{path}: expected the tensor {name} of shape {list(shape)}, found {found}; the bundle is damaged, "
                    f"make it again",
                )
            elif not (info.dtype == torch.uint8 if suffix == "weight_codes" else info.dtype.is_floating_point):
                expected = "uint8" if suffix == "weight_codes" else "a floating-point type"
                yield Fault(
                    name,
                    f"{path}: the tensor {name} is {str(info.dtype).removeprefix('torch.')}, expected {expected}; the "
                    f"bundle is damaged, make it again",
                )
        owner = layout.channel_scale_from
        if owner is not None and not _shares(layout, layouts.get(owner)):
            yield Fault(
                module,
                f"{path / CONFIG}: {module!r} takes its channel scale from {owner!r}, which has none of its size; "
                f"the bundle is damaged, make it again",
            )
    for name in sorted(infos):
        module, _, suffix = name.rpartition(".")
        if suffix == "weight_codes" and module not in layouts:
            yield Fault(
                name,
                f"{path / CONFIG}: quantization_config.modules does not say how the stored {name!r} decodes; "
                f"the bundle is damaged, make it again",
            )


def _shares(layout: Layout, owner: Layout | None) -> bool:
    """Whether `owner` stores a channel scale that fits `layout`."""
    return (
        owner is not None
        and owner.channel_scale
        and owner.channel_scale_from is None
        and owner.shape[1] == layout.shape[1]
    )
