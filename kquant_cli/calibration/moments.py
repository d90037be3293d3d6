"""What was measured of the layers' inputs, and its file: safetensors whose metadata say what belongs to what.

A group's second moments are the tensor `moments.<number>`. The metadata `kquant_statistics` is JSON: format version,
members of each group, and the rest. `sha256` is over that text and all moments, so that no damage passes unseen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_reader import read_header, read_tensor
from kquant_cli.files.safetensors_writer import tensor_file
from kquant_cli.files.tensor_bytes import tensor_bytes

FORMAT_VERSION: Final = 1
KEY: Final = "kquant_statistics"


@dataclass(frozen=True)
class InputGroup:
    """Matrices that share one input: their names on disk in natural order, and E[y_j^2] (in_features,) float64."""

    members: tuple[str, ...]
    second_moments: Tensor


@dataclass(frozen=True)
class InputStatistics:
    """The second moments of the inputs of a checkpoint's matrices.

    `source`: "random", or name and hash of the text; `tokens`: on how many; `notes`: sentences for the user;
    `missing`: the matrices of which nothing was observed.
    """

    groups: tuple[InputGroup, ...]
    source: str
    tokens: int
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def save(self, path: Path, fingerprint: str = "") -> None:
        """Write the file `path`, or leave it as it was; equal statistics give equal bytes.

        `fingerprint`: of what they were made from. OSError passes through.
        """
        moments = {f"moments.{number}": group.second_moments for number, group in enumerate(self.groups)}
        text = json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "fingerprint": fingerprint,
                "groups": [group.members for group in self.groups],
                "source": self.source,
                "tokens": self.tokens,
                "notes": self.notes,
                "missing": self.missing,
            }
        )
        metadata = {"format": "pt", KEY: text, "sha256": _digest(text, moments.values())}
        entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in moments.items()]
        with tensor_file(path, entries, metadata) as file:
            for name, tensor in moments.items():
                file.write(name, tensor)

    @classmethod
    def load(cls, path: Path) -> InputStatistics:
        """Read the file `path`. Raises KQuantError when it is damaged, or of another version."""
        return load_with_fingerprint(path)[0]


def load_with_fingerprint(path: Path) -> tuple[InputStatistics, str]:
    """What `InputStatistics.load` gives, and the fingerprint that was saved with it."""
    infos = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        values: dict[str, Any] = json.loads(metadata[KEY])
        if values["format_version"] != FORMAT_VERSION:
            raise KQuantError(
                f"{path} has version {values['format_version']} of kquant's statistics, and this kquant reads "
                f"{FORMAT_VERSION}: remove it to have them measured again"
            )
        moments = [read_tensor(infos[f"moments.{number}"]) for number in range(len(values["groups"]))]
        if metadata["sha256"] != _digest(metadata[KEY], moments):
            raise ValueError
        if not all(_is_sound(tensor) for tensor in moments):
            raise ValueError
        groups = tuple(InputGroup(tuple(m), t) for m, t in zip(values["groups"], moments, strict=True))
        lists = tuple(values["notes"]), tuple(values["missing"])
        return InputStatistics(groups, values["source"], values["tokens"], *lists), values["fingerprint"]
    except (SafetensorError, LookupError, ValueError, TypeError, OSError, RecursionError) as error:
        raise KQuantError(f"{path} is damaged or holds no statistics of kquant: remove it") from error


def _is_sound(moments: Tensor) -> bool:
    """Whether these can be second moments (in_features,)."""
    return moments.dtype == torch.float64 and moments.ndim == 1 and bool((moments.isfinite() & (moments >= 0)).all())


def _digest(text: str, moments: Iterable[Tensor]) -> str:
    digest = sha256(text.encode())
    for tensor in moments:
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
