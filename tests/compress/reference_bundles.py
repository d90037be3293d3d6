"""Bundles whose bytes must not change unnoticed: how they are made, and the SHA-256 of their files.

    python tests/compress/reference_bundles.py [--write]

prints the digests as JSON, or keeps them in reference_bundles.json under the key of this environment. Sums of floats
depend on the processor's vectors and on BLAS, so a digest holds for one torch, one kind of processor and one thread.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).parent
KEPT = HERE / "reference_bundles.json"
TEXT = "The lighthouse keeper counted ships until the fog came in. " * 40
FIRST = ["--exclude", "*.layers.[123].*"]  # blocks but the first stay dense
LAYERS = """
encoder: greedy
max_iter: 6
basis: hadamard
bits: 3
on_no_convergence: uniform:4
layers:
  - {match: "*fc1", encoder: annealed, effort: fast, levels: 6}
  - {match: "*.k_proj", encoder: kmeans, restarts: 2, bits: 2}
  - {match: "*.q_proj", init: peaks, basis: butterfly, basis_count: 2}
"""

RANDOM = ["--calibration", "random"]  # a model that could write is not asked to

# name: (source, arguments of `kquant compress`)
CASES: dict[str, tuple[str, list[str]]] = {
    "annealed": ("demo", ["--effort", "fast", *RANDOM, *FIRST]),
    "annealed-best-without-statistics": ("gpt2", ["--effort", "best", "--calibration", "none", "--bits", "2"]),
    "annealed-output": (
        "demo",
        ["--effort", "fast", "--side", "output", "--codebook", "product", *RANDOM, *FIRST],
    ),
    "annealed-average": ("demo", ["--effort", "fast", "--bits", "3.25", "--no-equal-fused", *RANDOM, *FIRST]),
    "annealed-average-on-text": (
        "demo",
        ["--effort", "fast", "--side", "input", "--bits", "2.5", "--calibration", "text.txt", *FIRST],
    ),
    "annealed-levels": (
        "llama",
        ["--levels", "12", "--seed", "3", "--side", "input", "--calibration", "text.txt", "--include", "lm_head"],
    ),
    "greedy": (
        "demo",
        ["--encoder", "greedy", "--basis", "butterfly", "--max-iter", "10", "--bits", "2", *FIRST],
    ),
    "greedy-rows": (
        "gpt2",
        ["--encoder", "greedy", "--form", "vector", "--rule", "alternating", "--basis", "qr", "--calibration", "none"],
    ),
    "uniform": ("demo", ["--encoder", "uniform", *FIRST]),
    "uniform-range": ("llama", ["--encoder", "uniform", "--group-size", "0", "--levels", "5", "--calibration", "none"]),
    "kmeans": ("gpt2", ["--encoder", "kmeans", "--bits", "3", "--restarts", "2"]),
    "kmeans-peaks": (
        "bert_classifier",
        ["--encoder", "kmeans", "--init", "peaks", "--bits", "2", "--calibration", "none"],
    ),
    "rules": ("demo", ["--config", "layers.yaml", *RANDOM, *FIRST]),
    "experts": ("mixtral", ["--effort", "fast", "--bits", "3", *RANDOM]),
    "roberta": ("roberta", ["--effort", "fast"]),
}


def digests(folder: Path) -> dict[str, dict[str, str]]:
    """Make every bundle in `folder`; SHA-256 by case and file, of kquant.json without its versions."""
    sys.path.insert(0, str(HERE.parent))
    import tiny_models

    from kquant_cli.cli import main
    from kquant_cli.demo import demo_model_path

    os.chdir(folder)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    Path("layers.yaml").write_text(LAYERS, encoding="utf-8")
    found = {}
    for case, (source, arguments) in CASES.items():
        path = demo_model_path() if source == "demo" else Path("sources") / source
        if source != "demo" and not path.exists():
            tiny_models.make(source, path)
        if source == "llama" and not (path / "tokenizer.json").exists():
            tiny_tokenizer(path)
        main_quietly(main, ["compress", str(path), "-o", case, "--device", "cpu", *arguments])
        found[case] = {file.name: digest(file) for file in sorted(Path(case).iterdir()) if file.name != "run.json"}
    return found


def tiny_tokenizer(folder: Path) -> None:
    """A tokenizer of single letters, so that a text can be read."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {chr(32 + i): i for i in range(96)}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=" ").save_pretrained(folder)


def main_quietly(main: object, arguments: list[str]) -> None:
    """Run the command; its output, and its exit where that is 0, are of no interest."""
    try:
        main(arguments)
    except SystemExit as stop:
        if stop.code:
            raise


def digest(file: Path) -> str:
    """SHA-256 of a file; of kquant.json what does not depend on the versions."""
    content = file.read_bytes()
    if file.name == "kquant.json":
        values = json.loads(content)
        del values["versions"]
        content = json.dumps(values, indent=1).encode()
    return sha256(content).hexdigest()


def environment() -> str:
    """What the digests depend on beside the code."""
    import torch
    import transformers

    from kquant_cli.native import library

    loops = "compiled" if library("anneal") is not None else "torch"
    capability = torch.backends.cpu.get_cpu_capability()
    threads = f", {count} threads" if (count := torch.get_num_threads()) > 1 else ""
    return f"torch {torch.__version__}, {capability}, {loops} loops, transformers {transformers.__version__}{threads}"


def report() -> dict[str, dict[str, dict[str, str]]]:
    """The digests of all cases, by environment."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path.cwd()
        try:
            return {environment(): digests(Path(folder))}
        finally:
            os.chdir(here)


if __name__ == "__main__":
    result = report()
    if "--write" in sys.argv:
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        KEPT.write_text(json.dumps(kept | result, indent=1) + "\n")
    else:
        json.dump(result, sys.stdout)
