"""Damaged files of settings, for a dry run: a plan, or a refusal."""

from __future__ import annotations

import json
import shutil

from torture_kinds.damage_values import RAW, hostile
from torture_kinds.judge import BadError, is_right, require_untouched, tree
from torture_kinds.kind import Case, Kind
from torture_kinds.process import kquant, run
from torture_kinds.world import copy

PLAIN = b"encoder: annealed\nbits: 4\nexclude: ['*.q_proj']\nlayers:\n- {match: '*.k_proj', bits: 3}\n"
TEXTS = [
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(9))
    + "\nexclude: *j\n",
    "bits: 4\nbits: 3\n",
    "bits: " + "9" * 5000 + "\n",
    "seed: 2024-01-01\n",
    "seed: 2024-01-01T00:00:00Z\nexclude: [2024-01-01]\n",
    "seed: !!python/object/apply:os.system ['echo owned > out']\n",
    "exclude: !!binary aGVsbG8=\n",
    "exclude: !!set {a, b}\n",
    "\tbits: 4\n",
    "bits: [\n",
    "- bits\n",
    "bits\n",
    "---\nbits: 4\n---\nbits: 3\n",
    "? [a, b]\n: 1\n",
    "1: 2\nnull: 3\n",
    "seed: 0x7fffffffffffffffffff\n",
    "seed: 1_000_000\nbits: 0o4\n",
    "tol: .nan\n",
    "tol: .inf\nkmeans_tol: -.inf\n",
    "tol: 1:30\n",
    "a: &a\n  b: *a\n",
    "<<: {bits: 3}\nbits: 4\n",
    "layers: &l [{match: '*', layers: *l}]\n",
    "bits: 4\0\n",
    "exclude: ['[', '[!', '***************a', '\\\\']\n",
    "layers:\n" + "- {match: '*', bits: 4}\n" * 20000,
    "exclude: " + "[" * 3000 + "]" * 3000 + "\n",
    "\ufeffbits: 4\n",
    "on_no_convergence: uniform:" + "9" * 6000 + "\n",
    "calibration: ../source/config.json\n",
    "calibration: /dev/zero\n",
    'encoder: "\\e]0;owned\\a"\n',
    '"\\e]0;owned\\a": 3\n',
]


def _case(case: Case) -> str:
    case.folder.mkdir()
    copy(case.world.source("one"), case.folder / "source")
    shutil.copytree(case.world.start("empty") / "bystanders", case.folder / "bystanders")
    content, words = _settings(case)
    (case.folder / "settings.yaml").write_bytes(content)
    flags = ("--calibration", "none") if case.draw.random() < 0.8 or b"bits" in content else ()
    before = tree(case.folder)
    outcome = run(
        kquant("compress", "source", "-o", "out", "--dry-run", "--config", "settings.yaml", *flags), case.folder
    )
    what = f"settings {words}"
    right = is_right(outcome, what)
    found = tree(case.folder)
    require_untouched(found, before, "out", what)
    if "out" in found or "out.part" in found:
        raise BadError(f"{what}: a dry run leaves an output")
    return "right" if right else "refused"


def _settings(case: Case) -> tuple[bytes, str]:
    """A file of settings, and what is wrong with it."""
    draw = case.draw
    if case.number < len(TEXTS):
        text = TEXTS[case.number]
        return text.encode(), ascii(text[:80])
    if draw.random() < 0.15:
        data = bytearray(PLAIN)
        place = draw.randrange(len(data))
        data[place : place + draw.choice((0, 1, 10))] = draw.randbytes(draw.choice((1, 10)))
        return bytes(data), f"with other bytes at {place}"
    from kquant_cli.config import all_settings

    keys = [*all_settings(), "match", "options", "\x1b[2J"]
    values = {draw.choice(keys): hostile(draw) for _ in range(draw.choice((1, 1, 2, 3)))}
    if draw.random() < 0.3:
        values = {"layers": [{"match": draw.choice(("*", "*.q_proj", "[", hostile(draw))), **values}]}
    text = json.dumps(values)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode(), ascii(text[:120])


KIND = Kind(
    "settings",
    "YAML with aliases that multiply, dates, 5,000 digits, doubled keys, tags, deep nesting, other types and bytes",
    _case,
)
