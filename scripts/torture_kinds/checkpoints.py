"""Damaged checkpoints, compressed (or planned, or asked for text): a whole bundle of what they hold, or a refusal."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

from torture_kinds.bundles import refusing
from torture_kinds.damage import damage
from torture_kinds.judge import BadError, is_right, require_untouched, tree
from torture_kinds.kind import Case, Kind
from torture_kinds.process import kquant, run
from torture_kinds.world import OWN, QUICK, copy

TEMPLATES = [
    "{% for a in range(10**9) %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for",
    "{{ 1 / 0 }}",
    "{{ missing.part }}",
    "{{ raise_exception('no\x1b]0;owned\x07') }}",
    "{{ 10**10**8 }}",
    "",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
]
COMMANDS = {
    "dry run": ("compress", "source", "-o", "out", "--dry-run", *QUICK),
    "compress": ("compress", "source", "-o", "out", *QUICK),
    "compress on own text": ("compress", "source", "-o", "out", *OWN),
    "generate": ("generate", "source", "--prompt", "w3 w4 w5", "--max-new-tokens", "3"),
    "chat": ("generate", "source", "--prompt", "w3", "--max-new-tokens", "3", "--chat"),
}


class Runs:
    """A pickle that runs a command where it is loaded without care."""

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("echo owned >> bystanders/canary; echo owned > out",)


def _case(case: Case) -> str:
    kind = case.draw.choice(("one", "one", "shards", "bin"))
    case.folder.mkdir()
    copy(case.world.source(kind), source := case.folder / "source")
    shutil.copytree(case.world.start("empty") / "bystanders", case.folder / "bystanders")
    words = _damage(case, source, kind)
    name = case.draw.choice(list(COMMANDS))
    if "template" in words:
        name = "chat"
    before = tree(case.folder)
    outcome = run(kquant(*COMMANDS[name]), case.folder)
    what = f"{name} of a checkpoint ({kind}) with {words}"
    right = is_right(outcome, what)
    found = tree(case.folder)
    require_untouched(found, before, "out", what)
    if right and name.startswith("compress"):
        _require_whole(case.folder, what, tuned=name == "compress on own text")
    if not right or not name.startswith("compress"):
        left = sorted(n for n in found if n.partition("/")[0] == "out" or n.startswith("out.part"))
        if left:
            raise BadError(f"{what}: leaves {left[:3]}")
    return "right" if right else "refused"


def _damage(case: Case, source: Path, kind: str) -> str:
    """One fault, in words; what only a checkpoint can have, or what any folder can."""
    way = case.draw.random()
    if way < 0.08:
        template = case.draw.choice(TEMPLATES)
        (source / "chat_template.jinja").write_text(template)
        return f"the chat template {template[:60]!r}"
    if kind == "bin" and way < 0.2:
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(case.draw.choice((Runs(), {"a": Runs()}, 7, [Runs()]))))
        return "a pickle that runs a command"
    return damage(source, case.draw, case.world.source("other") / "model.safetensors")


def _require_whole(folder: Path, what: str, *, tuned: bool) -> None:
    """BadError unless the bundle opens, and has every tensor of the source: dense ones as they are unless `tuned`."""

    def work() -> None:
        from kquant_cli.bundle import open_bundle
        from kquant_cli.checkpoint import open_checkpoint

        bundle, checkpoint = open_bundle("out"), open_checkpoint("source")
        for name, tensor in bundle.tensors():
            stored = checkpoint.read(name)
            if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                raise RuntimeError(f"{name} has another shape or type")
            if name in bundle.infos and not tuned and not stored.equal(tensor):
                raise RuntimeError(f"{name} has other values")
            if not tensor.isfinite().all():
                raise RuntimeError(f"{name} is not finite")
        missing = checkpoint.tensors.keys() - {name for name, _, _ in bundle.shapes()}
        if missing:
            raise RuntimeError(f"{missing} are missing")

    outcome = run(refusing(work), folder)
    if outcome.code:
        raise BadError(f"{what}: the bundle is not whole: {outcome.err[-300:]!r}")


KIND = Kind(
    "checkpoints",
    "a checkpoint (one file, shards, `.bin`) with such damage, with pickles that run commands, with chat templates "
    "that never end, that is planned, compressed, or writes text",
    _case,
)
