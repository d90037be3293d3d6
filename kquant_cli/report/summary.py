"""The numbers of a bundle, from its manifest: per layer and in total. This is inspect's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kquant_cli.bundle import Bundle, kept_results
from kquant_cli.bundle.format import MANIFEST, MOST_RUN_BYTES, RUN, read_json
from kquant_cli.errors import KQuantError
from kquant_cli.report.manifest import check_manifest


def summarise(bundle: Bundle) -> dict[str, Any]:
    """Layers and totals of a bundle.

    `bits_per_weight`: stored bits (codes with padding, codebooks, scales) over encoded weights;
    `bits_per_weight_model`: bits of all tensors over all parameters; `encoded_share`: encoded weights over all
    parameters; `ratio`: bytes of the source's tensors over the bundle's; `notes`: of the whole bundle, then the
    distinct ones of its layers; `results`: the evaluations kept beside it, `refused`: sentences on files there that
    are none of its own; `statistics`: what channel scales were
    measured on, or what the matrices were calibrated on; `allocation`: the plan of an average of bits; `tuning`: what
    the scales' tuning came to; None where the manifest has none.

    Raises
    ------
    KQuantError
        The manifest lacks or garbles something.
    """
    manifest = bundle.manifest
    check_manifest(bundle.path / MANIFEST, manifest)
    results, refused = kept_results(bundle.path)
    layers = [_layer(name, facts) for name, facts in manifest["matrices"].items()]
    totals = manifest["totals"]
    return {
        "bundle": str(bundle.path),
        "source": manifest["source"],
        "layers": layers,
        "not_converged": [layer["name"] for layer in layers if layer["converged"] is False],
        "bits_per_weight": _ratio(8 * totals["encoded_bytes"], totals["encoded_weights"]),
        "bits_per_weight_model": _ratio(8 * totals["bytes"], totals["parameters"]),
        "encoded_share": _ratio(totals["encoded_weights"], totals["parameters"]),
        "ratio": _ratio(totals["source_bytes"], totals["bytes"]),
        **totals,
        "relative_squared_error": _ratio(
            sum(layer["relative_squared_error"] * layer["weights"] for layer in layers if layer["encoder"]),
            totals["encoded_weights"],
        ),
        "notes": list(dict.fromkeys([*manifest["notes"], *(note for layer in layers for note in layer["notes"])])),
        "settings": manifest["settings"],
        "versions": manifest["versions"],
        "statistics": manifest.get("statistics"),
        "allocation": manifest.get("allocation"),
        "tuning": manifest.get("tuning"),
        "run": _run(bundle.path / RUN),
        "results": results,
        "refused": refused,
    }


def _layer(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    rows, columns = facts["shape"]
    kept = facts["outcome"] == "kept"
    return {
        "name": name,
        "shape": facts["shape"],
        "weights": rows * columns,
        "encoder": None if kept else facts["encoder"],
        "levels": None if kept else facts["levels"],
        "bits_per_weight": None if kept else _ratio(8 * facts["bytes"], rows * columns),
        "relative_squared_error": facts["relative_error"] ** 2,
        **{k: v for k, v in facts.items() if k not in ("shape", "bytes", "encoder", "levels")},
    }


def _run(file: Path) -> dict[str, Any]:
    """The facts of the run; {} without them, since they are no part of the bundle and say nothing of its weights."""
    try:
        return read_json(file, MOST_RUN_BYTES)
    except KQuantError:
        return {}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
