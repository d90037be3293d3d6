"""What one who means harm would do to a bundle, spelled out: each is tried with every way of reading it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

Change = Callable[[dict[str, Any]], Any]


def sign(bundle: Path) -> bool:
    """Have the manifest say the sizes and digests of the files as they are now; False where it cannot be read."""
    manifest = bundle / "kquant.json"
    if not manifest.is_file():  # it may be a pipe by now, which would be waited for
        return False
    try:
        values = json.loads(manifest.read_text())
        for name in values["files"]:
            if (bundle / name).is_file():
                content = (bundle / name).read_bytes()
                values["files"][name] = {"size": len(content), "sha256": sha256(content).hexdigest()}
        manifest.write_text(json.dumps(values, indent=1))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return True


def _listed(name: str) -> Callable[[Path, Path], None]:
    """The manifest lists a file of that name."""
    return lambda bundle, _: _edit(bundle / "kquant.json", lambda values: values["files"].update({name: {}}))


def _elsewhere(name: str) -> Callable[[Path, Path], None]:
    """The index says that the tensors are in a file of that name, where there is one."""

    def change(values: dict[str, Any]) -> None:
        values["weight_map"] = dict.fromkeys(values["weight_map"], name)

    def attack(bundle: Path, _: Path) -> None:
        if name == "../elsewhere.safetensors":
            shutil.copyfile(next(bundle.glob("*.safetensors")), bundle / name)
        _edit(bundle / "model.safetensors.index.json", change)

    return attack


def _layout(**changes: Any) -> Callable[[Path, Path], None]:
    """The first matrix's layout says so, in its frame or beside it."""

    def change(values: dict[str, Any]) -> None:
        modules = values["quantization_config"]["modules"]
        layout = modules[next(iter(modules))]
        for part in _parts(layout):
            part.update({key: value for key, value in changes.items() if key in part})

    return lambda bundle, _: _edit(bundle / "config.json", change)


def _config(**changes: Any) -> Callable[[Path, Path], None]:
    return lambda bundle, _: _edit(bundle / "config.json", lambda values: values.update(changes))


def _weights(name: str) -> Callable[[Path, Path], None]:
    """Other weights beside the shards."""
    return lambda bundle, other: shutil.copyfile(other, bundle / name)  # type: ignore[return-value]


def _without_manifest(name: str) -> Callable[[Path, Path], None]:
    """No manifest, and other weights beside the shards."""

    def attack(bundle: Path, other: Path) -> None:
        (bundle / "kquant.json").unlink()
        shutil.copyfile(other, bundle / name)

    return attack


def _parts(value: Any) -> list[dict[str, Any]]:
    """A dict and all dicts within it."""
    if isinstance(value, list):
        return [part for item in value for part in _parts(item)]
    return [value, *(part for item in value.values() for part in _parts(item))] if isinstance(value, dict) else []


def _edit(file: Path, change: Change) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values, indent=1))


ATTACKS: dict[str, Callable[[Path, Path], None]] = {
    "model.safetensors of other weights beside the shards": _weights("model.safetensors"),
    "pytorch_model.bin beside the shards": _weights("pytorch_model.bin"),
    "no kquant.json, and model.safetensors of other weights": _without_manifest("model.safetensors"),
    "a listed file above the folder": _listed("../bystanders/canary"),
    "a listed file with an absolute path": _listed("/etc/hostname"),
    "a listed file with a path of Windows": _listed("..\\bystanders\\canary"),
    "a listed file with a NUL": _listed("a\0b"),
    "a listed file with an escape": _listed("\x1b]0;owned\x07"),
    "tensors in a file above the folder": _elsewhere("../elsewhere.safetensors"),
    "tensors in a device": _elsewhere("/dev/zero"),
    "bases of a million reflections": _layout(kind="householder", count=10**9),
    "dense bases of a large size": _layout(kind="qr", size=65536, shape=[65536, 65536]),
    "a matrix of 2^40 rows": _layout(shape=[2**40, 2**40]),
    "two million levels": _layout(levels=2 * 10**6),
    "ten million layers": _config(num_hidden_layers=10**7),
    "a vocabulary of 2^50 tokens": _config(vocab_size=2**50),
    "code of its own": _config(auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}),
}
