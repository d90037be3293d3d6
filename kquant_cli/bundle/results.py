"""Evaluations kept beside a bundle's manifest: `results/`, one JSON file a measurement, outside hashes and identity.

A file is named by task and protocol and by a hash of what was asked: the same measurement again takes its own place.
Where the bundle cannot be written, `results/NAME-OF-THE-BUNDLE/` in the current folder takes them. An entry says by its
fingerprint of which bundle it is; one of an earlier kquant, which has none, is taken for the bundle's that it lies in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kquant_cli.bundle.format import MANIFEST, MOST_BYTES, MOST_RESULT_BYTES, RESULTS
from kquant_cli.bundle.result_entry import garbled
from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import find_object, read_object, write_json
from kquant_cli.files.safe_names import leads_outside, stays_inside

MOST_FILES = 1000  # of a folder of results
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
    task, protocol = (re.sub(r"[^\w.-]", "_", str(result[key])) for key in ("task", "protocol"))  # as lm_eval:piqa
    name = f"{task}-{protocol}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}.json"
    measured = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"measured": measured, "fingerprint": _fingerprint(bundle), **result}
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


def kept_results(bundle: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The entries kept for a bundle, by task and time; and a sentence on each file that is none of them."""
    found, refused = [], []
    fingerprint = _fingerprint(bundle)
    for folder in _folders(bundle):
        files = sorted(folder.glob("*.json"))
        if len(files) > MOST_FILES:
            refused.append(f"{folder}: holds {len(files)} files, and the first {MOST_FILES} are read")
        for file in files[:MOST_FILES]:
            try:
                found.append(_read(bundle, file, fingerprint))
            except KQuantError as error:
                refused.append(str(error))
    return sorted(found, key=lambda entry: (entry["task"], entry["measured"])), refused


def _read(bundle: Path, file: Path, fingerprint: str | None) -> dict[str, Any]:
    """The entry in `file`; KQuantError where it is none, or not this bundle's."""
    own = file.parent == bundle / RESULTS
    if leads_outside(bundle, f"{RESULTS}/{file.name}") if own else leads_outside(file.parent, file.name):
        raise KQuantError(f"{file}: is a link that leads elsewhere, so it is not shown")
    try:
        entry = read_object(file, most=MOST_RESULT_BYTES, finite=True)
    except KQuantError as error:
        raise KQuantError(f"{error}, so it is not shown") from error
    if what := garbled(entry):
        raise KQuantError(f"{file}: is no evaluation (it lacks or garbles {what}), so it is not shown")
    of = entry.get("fingerprint")
    if fingerprint is not None and of != fingerprint and not (own and of is None):
        what = f"of another bundle (of fingerprint {of[:12]})" if of else "of an earlier kquant, which names no bundle"
        raise KQuantError(f"{file}: is {what}, so it is not shown; evaluate this one")
    return entry


def _fingerprint(bundle: Path) -> str | None:
    found = (find_object(bundle / MANIFEST, MOST_BYTES) or {}).get("fingerprint")
    return found if isinstance(found, str) else None


def _folders(bundle: Path) -> tuple[Path, ...]:
    name = bundle.resolve().name
    return bundle / RESULTS, *([Path(RESULTS) / name] if stays_inside(name) else [])
