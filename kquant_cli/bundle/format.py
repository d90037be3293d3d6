"""The names and numbers of the bundle's format, version 4.

In version 3 no input embedding was encoded unless a pattern asked for it, and version 2 had no constant codebooks: both
are read as ever. Version 1, before any release, packed codes otherwise.

A bundle is a Hugging Face checkpoint: `config.json` whose `quantization_config` says how every encoded matrix decodes,
`model-0000X-of-0000Y.safetensors` with their index, and the source's other files. The matrix `M.weight` has become
`M.weight_codes`, its scales and, where it is no constant one, `M.weight_codebook`. `kquant.json` is provenance:
settings, source, versions, what happened to every matrix, and size and SHA-256 of every other file. `run.json` and
`results/` are outside all that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import JsonRefusals, find_object, read_object
from kquant_cli.files.safe_names import leads_outside

QUANT_METHOD = "kashin"
FORMAT_VERSION, READ_VERSIONS = 4, (2, 3, 4)
CONFIG, INDEX, MANIFEST, RUN, RESULTS = (
    "config.json",
    "model.safetensors.index.json",
    "kquant.json",
    "run.json",
    "results",
)
MOST_BYTES = 256_000_000  # of a JSON file: kquant.json takes 1 kB a matrix, 5 kB with a long trace
MOST_RUN_BYTES, MOST_RESULT_BYTES = 1_000_000, 4_000_000  # of run.json, which takes 200 bytes, and of one evaluation
REFUSALS = JsonRefusals(
    unreadable="{path}: cannot be read ({why}); the bundle is not whole, make it again",
    invalid="{path}: is not valid JSON ({why}); the bundle is damaged, make it again",
    no_object="{path}: holds no JSON object; the bundle is damaged, make it again",
    too_large="{path}: has {size} bytes, expected at most {most}; the bundle is damaged, make it again",
)


def is_bundle(path: Path) -> bool:
    """Whether the folder's config.json names our quantisation method."""
    quantization = (find_object(path / CONFIG, MOST_BYTES) or {}).get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD


def read_json(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """A JSON object from a file of a bundle; KQuantError when it is missing, too large or anything else.

    Numbers that are not finite are read in config.json alone, which is the source's but for one part.
    """
    if leads_outside(path.parent, path.name):
        raise KQuantError(f"{path}: is a link that leads out of the bundle; copy the file itself into it")
    return read_object(path, REFUSALS, most, finite=path.name != CONFIG)
