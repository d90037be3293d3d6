"""Damaged bundles: opened, loaded, shown and decompressed, they are what they were, or are refused."""

from __future__ import annotations

from pathlib import Path

from torture_kinds.attacks import ATTACKS, sign
from torture_kinds.damage import damage
from torture_kinds.judge import BadError, Tree, is_right, require_equal, require_untouched, tree
from torture_kinds.kind import Case, Kind
from torture_kinds.process import Work, kquant, run
from torture_kinds.world import IDS

WAYS = {"open": 3, "load": 2, "from_pretrained": 2, "inspect": 2, "decompress": 4}
NO_VALUES = {"inspect"}  # shows what the manifest says, which nothing else says again


def _case(case: Case) -> str:
    case.world.begin_with("empty", case.folder)
    words, signed, way = _damage(case, case.folder / "bundle", case.world.folder / "values" / "altered.safetensors")
    before = tree(case.folder)
    # another bundle, in fact: it has no right answer; and of equal sizes transformers' own loading asks no digest
    free = signed or way in NO_VALUES or (way == "from_pretrained" and "safetensors: bytes" in words)
    outcome = run(work(way, case.world.folder / "values", free), case.folder)
    what = f"{way} of a bundle with {words}" + (", signed anew" if signed else "")
    if "other values" in outcome.err:
        raise BadError(f"{what}: gives other values")
    in_its_own_words = way == "from_pretrained" and outcome.code == 1 and not outcome.late  # in transformers'
    right = not in_its_own_words and is_right(outcome, what)
    found = tree(case.folder)
    require_untouched(found, before, "out", what)
    if way == "decompress" and right and not free:
        require_equal(_dense(found), _dense(case.world.ends["decompress"]), what)
    if not right and any(name.startswith("out") and name != "out.txt" for name in found):
        raise BadError(f"{what}: is refused, and leaves {sorted(n for n in found if n.startswith('out'))[:3]}")
    return "right" if right else "refused"


def _damage(case: Case, bundle: Path, other_weights: Path) -> tuple[str, bool, str]:
    """What is damaged, whether the manifest's digests fit it, and the way of reading: first each attack in each way."""
    attack, way = divmod(case.number, len(WAYS))
    if attack < len(ATTACKS):
        words = list(ATTACKS)[attack]
        ATTACKS[words](bundle, other_weights)
        signs = "weights" not in words  # these are to change nothing, or to be refused
        return words, signs and sign(bundle), list(WAYS)[way]
    words = damage(bundle, case.draw, other_weights)
    signed = case.draw.random() < 0.4 and sign(bundle)
    return words, signed, case.draw.choices(list(WAYS), list(WAYS.values()))[0]


def work(way: str, values: Path, free: bool) -> Work:
    """One way of reading the bundle in the current folder; `free`: what comes out need not be as in `values`."""

    def opened() -> None:
        import torch

        from kquant_cli.bundle import open_bundle

        found = dict(open_bundle("bundle").tensors())
        expected = torch.load(values / "tensors.pt")
        if not free and not (found.keys() == expected.keys() and all(found[n].equal(t) for n, t in expected.items())):
            raise RuntimeError("other values")

    def loaded() -> None:
        import torch
        import transformers

        import kquant_cli

        transformers.logging.set_verbosity_error()  # it reports in bold letters
        if way == "load":
            model = kquant_cli.load("bundle")
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained("bundle")
        with torch.inference_mode():
            logits = model(torch.tensor([IDS])).logits
        if not free and not logits.equal(torch.load(values / "logits.pt")):
            raise RuntimeError("other values")

    if way == "decompress":
        return kquant("decompress", "bundle", "-o", "out")
    if way == "inspect":
        return kquant("inspect", "bundle")
    return refusing(opened if way == "open" else loaded)


def refusing(call: Work) -> Work:
    """`call`, with a KQuantError told as the command line tells it."""

    def work() -> None:
        import sys

        from kquant_cli.errors import KQuantError

        try:
            call()
        except KQuantError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return work


def _dense(found: Tree) -> Tree:
    """The dense checkpoint, but for what it says of its origin."""
    return {n: v for n, v in found.items() if n.startswith("out/") and n != "out/kquant-dense.json"}


KIND = Kind(
    "bundles",
    "a bundle with a damaged structure (types, sizes, names that lead outside, NaN, nesting, doubled keys, other "
    "weights, links, devices; with digests that fit, too) or bytes, that is opened, loaded, inspected or decompressed",
    _case,
)
