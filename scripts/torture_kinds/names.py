"""Odd names of models, files, tensors and options: no control character reaches the terminal, and nothing breaks."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

from torture_kinds.judge import BadError, is_right, require_untouched, tree
from torture_kinds.kind import Case, Kind
from torture_kinds.process import kquant, run
from torture_kinds.world import QUICK, copy

NAMES = [
    "line\nbreak",
    "esc\x1b]0;owned\x07",
    "clear\x1b[2J",
    "csi\x9b31m",
    "bidi\u202egnp",
    "isolate\u2066x",
    "byte\udcff",
    "x" * 250,
    " blank ",
    "-rf",
    "--help",
    "dice\U0001f3b2",
    "tab\there",
    "[red]markup[/red]",
    "[/]",
    "%s{}{0}",
    'a:b*?"<>|',
    "back\\slash",
    "carriage\rreturn",
    "e\u0301" * 20,
    "con",
    "'; touch owned; '",
    "$(touch owned)",
    "~",
    "...",
]
FORBIDDEN = ("\x1b]", "\x07", "\x1b[2J", "\x9b", "\u202e", "\u2066")  # of NAMES, which no progress bar uses
PLACES = (
    "model folder",
    "output folder",
    "file",
    "tensor",
    "matrix",
    "shard",
    "metadata",
    "config",
    "settings",
    "prompt",
)


def _case(case: Case) -> str:
    name, place = NAMES[case.number % len(NAMES)], PLACES[case.number // len(NAMES) % len(PLACES)]
    terminal = case.number // (len(NAMES) * len(PLACES)) % 2 == 1
    case.folder.mkdir()
    shutil.copytree(case.world.start("empty") / "bystanders", case.folder / "bystanders")
    copy(case.world.source("one"), case.folder / "source")
    try:
        commands, output = _commands(case.folder, name, place)
    except OSError:  # the file system has no such name
        return "refused"
    what = f"{place} named {name[:40]!a}"
    end = "right"
    for args in commands:
        before = tree(case.folder)
        outcome = run(kquant(*args), case.folder, terminal=terminal)
        if terminal:
            said = outcome.out + outcome.err
            if found := next((part for part in FORBIDDEN if part in said), None):
                raise BadError(f"{args[0]} on a terminal, {what}: prints {found!a}")
            if outcome.code not in (0, 2) or "Traceback" in said:
                raise BadError(f"{args[0]} on a terminal, {what}: ends with {outcome.code}: {said[-300:]!r}")
            right = outcome.code == 0
        else:
            right = is_right(outcome, f"{args[0]}, {what}")
        require_untouched(
            tree(case.folder), before, output.partition("/")[0] or output if args[0] == "compress" else "dense", what
        )
        if not right:
            end = "refused"
            break
    return end


def _commands(folder: Path, name: str, place: str) -> tuple[list[tuple[str, ...]], str]:
    """Put the name in its place; the commands to run, and the name of the bundle."""
    source, out = "source", "out"
    if place == "model folder":
        source = name
        (folder / "source").rename(folder / name)
    elif place == "output folder":
        out = name
    elif place == "file":
        (folder / "source" / f"{name}.json").write_text("{}")
    elif place in ("tensor", "matrix", "metadata"):
        _rename(folder / "source" / "model.safetensors", name, place)
    elif place == "shard":
        _as_shard(folder / "source", f"{name}.safetensors")
    elif place == "config":
        file = folder / "source" / "config.json"
        file.write_text(
            json.dumps({**json.loads(file.read_text()), "_name_or_path": name, "model_type": name, name: name})
        )
    elif place == "settings":
        (folder / "settings.yaml").write_text(json.dumps({"exclude": [name], name: name}))
    compress = ("compress", source, "-o", out, *QUICK)
    if place == "settings":
        compress = (*compress, "--config", "settings.yaml")
    if place == "prompt":
        return [("generate", source, "--max-new-tokens", "2", "--prompt", name), ("generate", name, "-p", "w3")], out
    return [(*compress, "--dry-run"), compress, ("inspect", out), ("decompress", out, "-o", "dense")], out


def _rename(file: Path, name: str, place: str) -> None:
    """Rename a tensor of a safetensors file (a norm, or a matrix that is encoded), or put the name in its metadata."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if place == "metadata":
        header["__metadata__"] = {"format": "pt", name: name}
    else:
        old = "model.norm.weight" if place == "tensor" else "model.layers.0.mlp.up_proj.weight"
        header[name + ".weight" if place == "tensor" else f"model.layers.0.{name}.weight"] = header.pop(old)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _as_shard(source: Path, name: str) -> None:
    """Have an index name the one file of weights."""
    data = (source / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = [tensor for tensor in json.loads(data[8 : 8 + length]) if tensor != "__metadata__"]
    (source / "model.safetensors").rename(source / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


KIND = Kind(
    "names",
    "folders, files, tensors, shards, settings and prompts named with line breaks, escapes, BiDi, surrogates, dashes, "
    "markup, 250 letters; into a pipe and on a terminal",
    _case,
    lambda world: 2 * len(NAMES) * len(PLACES),
)
