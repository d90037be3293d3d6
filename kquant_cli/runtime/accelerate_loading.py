"""accelerate's `load_checkpoint_and_dispatch` on a bundle: the empty model gets our layers before it is filled.

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(bundle))
    model = load_checkpoint_and_dispatch(model, bundle, device_map="auto")

Without that accelerate would leave out every encoded tensor, with a warning. `from_pretrained(bundle, device_map=...)`
does the same in one step. This module is imported when accelerate is (kquant_autoload.py), and imports as little.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

NAME = "load_checkpoint_in_model"


def _with_bundles(load: Callable[..., None]) -> Callable[..., None]:
    """accelerate's function that fills a model from a checkpoint, which fills one with our layers from a bundle."""

    @wraps(load)
    def load_either(model: Any, checkpoint: Any, *args: Any, **others: Any) -> None:
        folder = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent
        if not (folder / "config.json").is_file():
            load(model, checkpoint, *args, **others)
            return
        from kquant_cli.bundle import is_bundle  # noqa: PLC0415 - accelerate is imported by programs without one

        if is_bundle(folder):
            _load_bundle(load, model, checkpoint, folder, args, others)
        else:
            load(model, checkpoint, *args, **others)

    return load_either


def _load_bundle(
    load: Callable[..., None], model: Any, checkpoint: Any, folder: Path, args: tuple[Any, ...], others: dict[str, Any]
) -> None:
    import torch  # noqa: PLC0415
    from transformers import PreTrainedModel  # noqa: PLC0415

    from kquant_cli.bundle.format import read_json  # noqa: PLC0415
    from kquant_cli.errors import KQuantError  # noqa: PLC0415
    from kquant_cli.files.safetensors_reader import read_header  # noqa: PLC0415
    from kquant_cli.runtime.embedding import KashinEmbedding  # noqa: PLC0415
    from kquant_cli.runtime.quantizer import KashinConfig, KashinQuantizer  # noqa: PLC0415

    instead = f"load it with from_pretrained({str(folder)!r}, device_map=...)"
    if not isinstance(model, PreTrainedModel) or any(p.device.type != "meta" for p in model.parameters()):
        raise KQuantError(f"{folder} is a bundle, which fills a transformers model without weights: {instead}")
    if others.get("dtype") is not None or len(args) > 2:  # it would change codebooks and scales
        raise KQuantError(f"{folder} is a bundle, whose tensors keep their dtypes: leave dtype out, or {instead}")
    files = sorted(folder.glob("*.safetensors"))
    quantizer = KashinQuantizer(KashinConfig(**read_json(folder / "config.json")["quantization_config"]))
    quantizer.preprocess_model(model, checkpoint_files=files)
    load(model, checkpoint, *args, **others)
    stored = {name for file in files for name in read_header(file)}
    if absent := [name for name, tensor in model.named_parameters() if tensor.is_meta and name not in stored]:
        raise KQuantError(f"{folder} is a bundle that has no {absent[0]!r} under that name: {instead}")
    for module in model.modules():
        if isinstance(module, KashinEmbedding):  # no tensor of the bundle
            module.like = torch.empty_like(module.like, device="cpu").to(module.weight_codes.device)
    quantizer.postprocess_model(model)
    vars(model)["hf_quantizer"] = quantizer


def register() -> None:
    """Put ours wherever accelerate has its function, once: this module is imported once."""
    theirs = getattr(sys.modules["accelerate.utils.modeling"], NAME)
    ours = _with_bundles(theirs)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "accelerate" and vars(module).get(NAME) is theirs:
            setattr(module, NAME, ours)


register()
