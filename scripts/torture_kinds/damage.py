"""One fault in a folder of files: in a JSON's structure, a safetensors header, any bytes, or in what there is."""

from __future__ import annotations

import os
import random
import shutil
import struct
from pathlib import Path

from torture_kinds.damage_values import CONTROL_NAMES, damaged_json


def damage(folder: Path, draw: random.Random, other_weights: Path) -> str:
    """Damage one thing in `folder`; what it was, in words. `other_weights`: a safetensors file with other values."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    jsons = [path for path in files if path.suffix == ".json"]
    jsons = [path for path in jsons if path.name != "tokenizer.json" or draw.random() < 0.3]  # it is most of the bytes
    tensors = [path for path in files if path.suffix == ".safetensors"]
    ways = [(0.4, jsons, _json), (0.22, tensors, _header), (0.18, files, _bytes), (0.2, files, _entry)]
    ways = [way for way in ways if way[1]]
    (_, choices, way), *_ = draw.choices(ways, [weight for weight, _, _ in ways])
    file = draw.choice(choices)
    words = _entry(file, draw, other_weights) if way is _entry else way(file, draw)
    return f"{file.name}: {words}"


def _json(file: Path, draw: random.Random) -> str:
    content, words = damaged_json(file.read_text(encoding="utf-8"), draw)
    file.write_bytes(content)
    return words


def _header(file: Path, draw: random.Random) -> str:
    """Damage the header of a safetensors file, or what it says of its own length."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, content = data[8 : 8 + length], data[8 + length :]
    if draw.random() < 0.15:
        said = draw.choice((0, 1, length - 1, length + 1, length + len(content) + 1, 10**8, 2**63 - 1, 2**64 - 1))
        file.write_bytes(struct.pack("<Q", said) + header + content)
        return f"its header is said to have {said} bytes"
    header, words = damaged_json(header.decode(), draw)
    file.write_bytes(struct.pack("<Q", len(header)) + header + content)
    return f"header: {words}"


def _bytes(file: Path, draw: random.Random) -> str:
    """Flip, cut, lengthen or copy bytes."""
    data = bytearray(file.read_bytes())
    way = draw.choice(("flip", "flip", "flip", "cut", "lengthen", "copy", "zeros", "noise"))
    if not data:
        way = "lengthen"
    begin = draw.randrange(max(len(data), 1))
    end = min(begin + draw.choice((1, 8, 100, 5000)), len(data))
    if way == "flip":
        data[begin] ^= 1 << draw.randrange(8)
    elif way == "cut":
        del data[begin:]
    elif way == "lengthen":
        data += draw.choice((b"\0", b"\n", b"}", b"x" * 1000))
    elif way == "copy":
        place = draw.randrange(len(data))
        data[place : place + end - begin] = data[begin:end]
    elif way == "zeros":
        data[begin:end] = bytes(end - begin)
    else:
        data[begin:end] = draw.randbytes(end - begin)
    file.write_bytes(data)
    return f"bytes: {way} at {begin}"


def _entry(file: Path, draw: random.Random, other_weights: Path) -> str:
    """Remove or replace the file as a whole, or put another one beside it."""
    canary, folder = file.parent.parent / "bystanders" / "canary", file.parent
    way = draw.choice(
        (
            "removed",
            "link",
            "link to canary",
            "link to device",
            "loop",
            "folder",
            "pipe",
            "exchanged",
            "weights",
            "extra",
        )
    )
    if way in ("removed", "link", "link to canary", "link to device", "loop", "folder", "pipe"):
        content = file.read_bytes()
        file.unlink()
    if way == "link":
        beside = folder.parent / "beside"
        beside.write_bytes(content)
        file.symlink_to(beside)
    elif way == "link to canary":
        file.symlink_to(canary)
    elif way == "link to device":
        file.symlink_to(draw.choice(("/dev/zero", "/dev/null", "/dev/urandom")))
    elif way == "loop":
        file.symlink_to(file.name)
    elif way == "folder":
        file.mkdir()
    elif way == "pipe":
        os.mkfifo(file)
    elif way == "exchanged":
        return _exchange(file, draw.choice(sorted(path for path in folder.iterdir() if path.is_file())))
    elif way == "weights":
        name = draw.choice(("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "a.safetensors"))
        shutil.copyfile(other_weights, folder / name)
        return f"other weights beside it: {name}"
    elif way == "extra":
        return _add(folder, draw)
    return way


def _exchange(first: Path, second: Path) -> str:
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    return f"exchanged with {second.name}"


def _add(folder: Path, draw: random.Random) -> str:
    """Put something beside the files that does not belong there."""
    names = [".env", "adapter_config.json", "results", "tokenizer.model", "kquant.json.part", "modeling_x.py"]
    name = draw.choice(names + [name for name in CONTROL_NAMES if len(name) < 200 and name != "\ud800"])
    path = folder / name
    if path.exists():
        return f"{name!a} is there already"
    way = draw.choice(("file", "folder", "pipe", "link"))
    if way == "file":
        path.write_text(draw.choice(("{}", "secret", "")))
    elif way == "folder":
        path.mkdir()
        (path / "x.json").write_text(draw.choice(("{}", "[", '{"task": 1, "measured": [], "sentence": null}')))
    elif way == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(draw.choice(("/dev/zero", "/etc/hostname", "nowhere", "..", "/")))
    return f"{name!a} beside it, a {way}"
