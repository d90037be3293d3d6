"""Evaluations kept beside a bundle's manifest: `results/`, one JSON file a measurement, outside hashes and identity.

A file is named by task and protocol and by a hash of what was asked: the same measurement again takes its own place.
Where the bundle cannot be written, `results/NAME-OF-THE-BUNDLE/` in the current folder takes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kquant_cli.bundle.format import RESULTS, write_json
from kquant_cli.errors import KQuantError

ASKED = ("task", "protocol", "seqlen", "stride", "limit", "data_sha256", "dtype", "device")


def keep_result(bundle: Path, result: Mapping[str, Any]) -> Path:
    """Write a result's JSON entry, with the time; the file that holds it, which says where it went.

    Raises
    ------
    KQuantError
        Neither the bundle nor the current folder can be written.
    """
    against = (result.get("against") or {}).get("model")
    asked = json.dumps([result.get(key) for key in ASKED] + [against])
    protocol = str(result["protocol"]).replace(" ", "_")
    task = re.sub(r"[^\w.-]", "_", str(result["task"]))  # lm_eval:piqa is no file name everywhere
    name = f"{task}-{protocol}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}.json"
    entry = {"measured": datetime.now(UTC).isoformat(timespec="seconds"), **result}
    reasons = []
    for folder in _folders(bundle):
        try:
            return _write(folder, name, entry)
        except OSError as error:
            reasons.append(f"{folder} ({error.strerror})")
    raise KQuantError(f"neither {' nor '.join(reasons)} can be written: make one of them writable")


def kept_results(bundle: Path) -> list[dict[str, Any]]:
    """The entries kept for a bundle, by task and time; files that hold none are passed over."""
    found = []
    for folder in _folders(bundle):
        for file in sorted(folder.glob("*.json")):
            try:
                entry = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if _is_result(entry):
                found.append(entry)
    return sorted(found, key=lambda entry: (entry["task"], entry["measured"]))


def _is_result(entry: object) -> bool:
    """Whether a file holds what `keep_result` writes, as far as it is shown."""
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(key), str) for key in ("task", "measured", "sentence")
    ):
        return False
    against = entry.get("against") or {"metrics": {}, "differences": {}}
    numbers = [entry.get("metrics"), entry.get("counts"), against.get("metrics"), against.get("differences")]
    return all(isinstance(part, dict) for part in numbers)


def _write(folder: Path, name: str, entry: dict[str, Any]) -> Path:
    """Write the file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.{os.getpid()}"
    write_json(part, entry)
    return part.replace(folder / name)


def _folders(bundle: Path) -> tuple[Path, Path]:
    return bundle / RESULTS, Path(RESULTS) / bundle.resolve().name
