#!/usr/bin/env python3
"""Put measured figures, options and settings into the documents, between the markers <!-- NAME --> and <!-- end -->.

    python scripts/docs.py [--check]

A block of figures is made from the file that the measuring script wrote to scripts/results/ (`--json`), with the
machine it ran on; the tables of options and settings are made from the program itself.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from command_tables import excerpt, options, output, settings
from encoding_tables import annealing, memory, overhead, speed
from grid_tables import costs, grids
from head_tables import head_bits
from paper import tables
from quality_tables import at_equal_bits, calibrated, calibrated_at_equal_bits, compared, errors, kinds
from results import RESULTS
from runtime_tables import products, runtime
from torture_table import kinds as torture_kinds
from torture_table import torture

from kquant_cli.cli import app

ROOT = Path(__file__).parent.parent
# By marker: the file in scripts/results, or "", and what it becomes.
Blocks = dict[str, tuple[str, Callable[[Any], str]]]

README: Blocks = {
    "at-equal-bits": ("compare-smollm2.json", at_equal_bits),
    "calibrated-at-equal-bits": ("calibrated-smollm2.json", calibrated_at_equal_bits),
    "demo-excerpt": ("demo.txt", excerpt),
}
COMMANDS = [str(command.name) for command in app.registered_commands]
GUIDE: Blocks = {
    "demo-output": ("demo.txt", output),
    "settings": ("", settings),
    **{f"options-{command}": ("", options(command)) for command in COMMANDS},
}
MEASURED: Blocks = {
    "errors": ("errors.json", errors),
    "kinds": ("errors.json", kinds),
    "compared-smollm2": ("compare-smollm2.json", compared),
    "calibrated": ("calibrated-smollm2.json", calibrated),
    "compared-demo": ("compare-demo.json", compared),
    "integer-grids": ("integer-grids.json", costs),
    "annealing": ("bench-annealed.json", annealing),
    "speed": ("bench-encode.json", speed),
    "memory": ("memory.json", memory),
    "runtime": ("bench-runtime.json", runtime),
    "products": ("bench-product.json", products),
    "paper-glue": ("paper/table3.json", tables.short_glue),
    "eval-overhead": ("eval-overhead.json", overhead),
}
FORMAT: Blocks = {"grids": ("", grids)}
METHOD: Blocks = {"head-bits": ("head-bits.json", head_bits)}
TRUST: Blocks = {"torture-kinds": ("torture.json", torture_kinds), "torture": ("torture.json", torture)}
DOCUMENTS: dict[Path, Blocks] = {
    ROOT / "README.md": README,
    ROOT / "docs" / "guide.md": GUIDE,
    ROOT / "docs" / "results.md": MEASURED,
    ROOT / "docs" / "format.md": FORMAT,
    ROOT / "docs" / "method.md": METHOD,
    ROOT / "docs" / "trust.md": TRUST,
    ROOT / "scripts" / "paper" / "README.md": tables.BLOCKS,
}
MARKER = re.compile(r"^<!-- ([\w-]+) -->$", re.MULTILINE)


def filled(document: Path) -> str:
    """The document with every block made anew."""
    text = document.read_text(encoding="utf-8")
    blocks, where = DOCUMENTS[document], document.relative_to(ROOT)
    for name in _unknown(text, blocks):
        sys.exit(f"{where} has a block <!-- {name} -->, which scripts/docs.py does not know")
    for name, (file, make) in blocks.items():
        result = (RESULTS / file).read_text(encoding="utf-8") if file else ""
        block = make(json.loads(result) if file.endswith(".json") else result)
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
        if count != 1:
            sys.exit(f"{where} has {count} blocks <!-- {name} -->, expected one")
    return text


def _unknown(text: str, blocks: Blocks) -> Iterator[str]:
    """Names of markers that nothing fills."""
    yield from (name for name in MARKER.findall(text) if name not in {*blocks, "end"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the documents are up to date")
    args = parser.parse_args()
    for document in DOCUMENTS:
        old, new = document.read_text(encoding="utf-8"), filled(document)
        if args.check and new != old:
            sys.exit(f"{document.relative_to(ROOT)} does not show what is: run python scripts/docs.py")
        if new != old:
            document.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
