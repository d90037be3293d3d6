"""Evaluations kept beside a bundle's manifest: `results/`, one JSON file a measurement, outside hashes and identity.

A file is named by task and protocol and by a hash of what was asked: the same measurement again takes its own place.
Where the bundle cannot be written, `results/NAME-OF-THE-BUNDLE/` in the current folder takes them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kquant_cli.bundle.format import RESULTS
from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import find_object, write_json

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
            if folder.parent == bundle:
                folder.mkdir(exist_ok=True)  # not the bundle, should it be replaced at this moment
            write_json(folder / name, entry)
            return folder / name
        except OSError as error:
            reasons.append(f"{folder} ({error.strerror})")
    raise KQuantError(f"neither {' nor '.join(reasons)} can be written: make one of them writable")


def kept_results(bundle: Path) -> list[dict[str, Any]]:
    """The entries kept for a bundle, by task and time; files that hold none are passed over."""
    found = []
    for folder in _folders(bundle):
        for file in sorted(folder.glob("*.json")):
            entry = find_object(file)
            if entry is not None and _is_result(entry):
                found.append(entry)
    return sorted(found, key=lambda entry: (entry["task"], entry["measured"]))


def _is_result(entry: Mapping[str, Any]) -> bool:
    """Whether a file holds what `keep_result` writes, as far as it is shown."""
    if not all(isinstance(entry.get(key), str) for key in ("task", "measured", "sentence")):
        return False
    against = entry.get("against") or {"metrics": {}, "differences": {}}
    numbers = [entry.get("metrics"), entry.get("counts"), against.get("metrics"), against.get("differences")]
    return all(isinstance(part, dict) for part in numbers)


def _folders(bundle: Path) -> tuple[Path, Path]:
    return bundle / RESULTS, Path(RESULTS) / bundle.resolve().name
