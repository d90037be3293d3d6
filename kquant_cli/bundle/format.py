"""The names and numbers of the bundle's format, version 2 (1, before any release, packed codes otherwise).

A bundle is a Hugging Face checkpoint: `config.json` whose `quantization_config` says how every encoded matrix decodes,
`model-0000X-of-0000Y.safetensors` with their index, and the source's other files. The matrix `M.weight` has become
`M.weight_codes`, `M.weight_codebook` and its scales. `kquant.json` is provenance: settings, source, versions, what
happened to every matrix, and size and SHA-256 of every other file. `run.json` and `results/` are outside all that.
"""

from __future__ import annotations

import json
from hashlib import file_digest
from pathlib import Path
from typing import Any

from kquant_cli.errors import KQuantError

QUANT_METHOD = "kashin"
FORMAT_VERSION = 2
CONFIG, INDEX, MANIFEST, RUN, RESULTS = (
    "config.json",
    "model.safetensors.index.json",
    "kquant.json",
    "run.json",
    "results",
)


def is_bundle(path: Path) -> bool:
    """Whether the folder's config.json names our quantisation method."""
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a bundle; KQuantError when it is missing or anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KQuantError(
            f"{path}: cannot be read ({error.strerror}); the bundle is not whole, make it again"
        ) from error
    except ValueError as error:
        raise KQuantError(f"{path}: is not valid JSON; the bundle is damaged, make it again") from error
    if not isinstance(values, dict):
        raise KQuantError(f"{path}: holds no JSON object; the bundle is damaged, make it again")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object, readable, with its keys as they come."""
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
