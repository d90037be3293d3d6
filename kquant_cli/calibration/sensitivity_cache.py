"""Measured sensitivities kept in a JSON file, since they take as many forward passes as there are matrices.

The file says what they were measured on: the caller's fingerprint (of the checkpoint, the channel scales, the seed, the
device: all that this file cannot know), the source with the text's SHA-256, tokens, draws and eps, and the names of the
matrices; and a SHA-256 of all of that and the numbers. Where all that is the same they are used again; anything else, a
damaged file too, is measured anew, with a word to the user.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from kquant_cli.calibration.sensitivity import DATA_FREE, DRAWS, EPS, TOKENS, measure_sensitivity
from kquant_cli.calibration.text_source import open_source
from kquant_cli.checkpoint import Checkpoint, Matrix
from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import find_object, write_json
from kquant_cli.files.plain_files import is_there


def load_or_measure(
    checkpoint: Checkpoint,
    matrices: Sequence[Matrix],
    source: str,
    *,
    file: Path,
    fingerprint: str,
    tokens: int = TOKENS,
    eps: float = EPS,
    say: Callable[[str], None] = lambda _: None,
    **others: Any,
) -> dict[str, float]:
    """The sensitivities from `file` where they fit, else `measure_sensitivity`, which `others` go to, and into `file`.

    The notes of the measurement are told to `say` in either case.

    Raises
    ------
    KQuantError
        As `measure_sensitivity` does, and where the file cannot be written.
    """
    key = {
        "fingerprint": fingerprint,
        "source": source,
        "text_sha256": open_source(source, DATA_FREE).sha256,
        **{"tokens": tokens, "draws": DRAWS, "eps": eps},
    }
    names = [matrix.name for matrix in matrices]
    kept = _read(file, key, names) if is_there(file) else None
    if kept is None:
        if is_there(file):
            say(f"the sensitivities in {file} are damaged, or of other settings or weights, and are measured again")
        notes: list[str] = []
        measured = measure_sensitivity(checkpoint, matrices, source, tokens=tokens, eps=eps, say=notes.append, **others)
        checkpoint.require_unchanged()  # or they would be kept as those of the source that was hashed
        kept = measured, notes
        _write(file, {**key, "notes": notes, "sensitivities": measured})
    sensitivities, told = kept
    for note in told:
        say(note)
    return sensitivities


def _read(file: Path, key: dict[str, Any], names: Sequence[str]) -> tuple[dict[str, float], list[str]] | None:
    """Sensitivities and notes of a file that was written for the same; None for any other."""
    values = find_object(file) or {}
    try:
        if values.pop("sha256") != _digest(values):
            return None
        found, notes = values["sensitivities"], values["notes"]
        same = all(values[name] == value for name, value in key.items()) and sorted(found) == sorted(names)
        sound = all(type(s) is float and math.isfinite(s) and s > 0 for s in found.values())
    except (KeyError, TypeError, AttributeError):
        return None
    if same and sound and isinstance(notes, list):
        return {name: found[name] for name in names}, [str(note) for note in notes]
    return None


def _digest(values: dict[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _write(file: Path, values: dict[str, Any]) -> None:
    try:
        write_json(file, {**values, "sha256": _digest(values)})
    except OSError as error:
        raise KQuantError(
            f"{file}: the sensitivities cannot be written there ({error.strerror or error}); make room, or choose a "
            f"folder that you may write to"
        ) from error
