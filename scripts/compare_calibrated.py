#!/usr/bin/env python3
"""What calibration and tuning buy: perplexity, divergence, seconds and memory of whole compressions of one model.

    python scripts/compare_calibrated.py MODEL --text wiki.test.raw --other c4.txt --work FOLDER --json FILE
                                         [--public text.txt] [--bits 4 3 2]
                                         [--seeds 0 1 2] [--only tuned ...] [--minutes 20]

Each variant is a run of the pipeline as `kquant compress` does it, in a process of its own (its peak memory is that of
`run.json`), and is then measured from the decoded weights in float32: perplexity on the windows of two texts, and on
those of the first the KL divergence from the dense model in nats a token, its mean and its 99th percentile, and how
often both have the same most likely token. Rows are written as they come; those that the file has already are not
measured again. GPTQ stands beside them (gptq.py) on the tokens of the bundle of the same seed, and on those of a public
text (`--public`).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gptq import encode_all, input_moments
from results import machine, write_results
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from kquant_cli.bundle import open_bundle
from kquant_cli.checkpoint import open_checkpoint, select_matrices
from kquant_cli.divergence import kl_divergence
from kquant_cli.hf.loading import load_dense
from kquant_cli.hf.tokens import read_tokenizer, text_ids
from kquant_cli.report import summarise
from kquant_cli.runtime.decoded_model import load_decoded

POSITIONS = 256  # of which logits are held at a time
OWN, PUBLIC = "GPTQ, the model's own text", "GPTQ, a public text"
TOKENS, LENGTH = 24576, 512  # of the public text
VARIANTS: dict[str, tuple[str, ...]] = {
    "data-free": ("--calibration", "random"),
    "calibrated": ("--tune-steps", "0"),
    "tuned": (),
    "calibrated, fast": ("--effort", "fast", "--tune-steps", "0"),
    "tuned, fast": ("--effort", "fast"),
    "tuned, best": ("--effort", "best"),
}


def windows(model: str, text: Path, count: int, length: int) -> Tensor:
    """The first windows of a text (count, length)."""
    ids = text_ids(read_tokenizer(model), text.read_text(encoding="utf-8"), count * length, letters=8, special=False)
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


@torch.no_grad()
def hidden_states(model: Any, ids: Tensor) -> list[Tensor]:
    """What the head reads, window by window."""
    return [model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in ids]


@torch.no_grad()
def losses(model: Any, ids: Tensor, dense: list[Tensor] | None = None) -> dict[str, float]:
    """Perplexity, and against the dense model's hidden states, whose head is the same, the divergence."""
    head = model.get_output_embeddings()
    nats, count, divergences, same = 0.0, 0, [], 0
    for number, (row, hidden) in enumerate(zip(ids, hidden_states(model, ids), strict=True)):
        for begin in range(0, len(row), POSITIONS):
            logits = head(hidden[begin : begin + POSITIONS]).float()
            following = row[begin + 1 : begin + 1 + POSITIONS]
            nats += float(functional.cross_entropy(logits[: len(following)], following, reduction="sum"))
            count += len(following)
            if dense is not None:
                expected = head(dense[number][begin : begin + POSITIONS]).float()
                divergences.append(kl_divergence(expected, logits))
                same += int((expected.argmax(-1) == logits.argmax(-1)).sum())
    found = {"perplexity": math.exp(nats / count)}
    if dense is not None:
        kl = torch.cat(divergences)
        found |= {"kl": float(kl.mean()), "kl_99": float(kl.quantile(0.99)), "same_top": same / len(kl)}
    return found


def compressed(args: argparse.Namespace, variant: str, bits: float, seed: int) -> Path:
    """The bundle of that variant, made by the command, or found."""
    out: Path = args.work / f"{variant.replace(', ', '-')}-{bits:g}-{seed}"
    minutes = (
        ()
        if "--tune-steps" in VARIANTS[variant] or "random" in VARIANTS[variant]
        else ("--tune-minutes", str(args.minutes))
    )
    for text in args.work.glob(f"*-{seed}.text.safetensors"):  # of another variant: taken up where it is the same text
        if text.name != f"{out.name}.text.safetensors":
            shutil.copyfile(text, out.with_name(out.name + ".text.safetensors"))
        break
    command = [sys.executable, "-m", "kquant_cli", "compress", args.model, "--bits", f"{bits:g}", "--seed", str(seed)]
    command += ["--head-bits", "16"]  # as the other tables have it
    subprocess.run([*command, *VARIANTS[variant], *minutes, "-o", str(out)], check=True)
    return out


def peer(args: argparse.Namespace, variant: str, bits: float, seed: int) -> tuple[Any, dict[str, Any]]:
    """The dense model with GPTQ's weights, and the facts of its row."""
    started, model = time.perf_counter(), load_dense(args.model, device="cpu", dtype=torch.float32).model
    if variant == PUBLIC:
        length = LENGTH
        ids = windows(args.model, args.public, -(-TOKENS // length), length)
    else:
        file = next(args.work.glob(f"*-{seed}.text.safetensors"))
        ids = load_file(file)["ids"].long()
    names = [matrix.name for matrix in select_matrices(open_checkpoint(args.model)).matrices]
    stored = encode_all(model, input_moments(model, names, ids), int(bits))
    return model, {
        "bits": stored,
        "error": None,
        "seconds": time.perf_counter() - started,
        "peak": None,
        "tuning": None,
    }


def measured(args: argparse.Namespace, out: Path, ids: Tensor, other: Tensor, dense: list[Tensor]) -> dict[str, Any]:
    """A row of one bundle."""
    bundle = open_bundle(out)
    summary = summarise(bundle)
    model, _ = load_decoded(bundle, "AutoModelForCausalLM", None, torch.float32)
    model.eval()
    row = losses(model, ids, dense) | {"other": losses(model, other)["perplexity"]}
    row |= {"bits": summary["bits_per_weight"], "error": summary["relative_squared_error"]}
    row |= {"seconds": summary["run"].get("seconds"), "peak": summary["run"].get("peak_memory_bytes")}
    return row | {"tuning": summary["tuning"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--public", type=Path, help="what GPTQ is calibrated on beside the model's own text")
    parser.add_argument("--work", type=Path, required=True, help="where the bundles go")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only", nargs="+", choices=[*VARIANTS, OWN, PUBLIC], default=["data-free", "calibrated", "tuned"]
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    args = parser.parse_args()
    ids, other = (windows(args.model, text, args.windows, args.length) for text in (args.text, args.other))
    model = load_dense(args.model, device="cpu", dtype=torch.float32).model
    dense = hidden_states(model, ids)
    values: dict[str, Any] = {"machine": machine(), "model": Path(args.model).name, "windows": list(ids.shape)}
    values |= {"minutes": args.minutes, "rows": []}
    if args.json and args.json.exists():
        values["rows"] = json.loads(args.json.read_text(encoding="utf-8"))["rows"]
    values["dense"] = losses(model, ids) | {"other": losses(model, other)["perplexity"]}
    del model
    known = {(row["variant"], row["rate"], row["seed"]) for row in values["rows"]}
    for seed in args.seeds:
        for bits in args.bits:
            for variant in args.only:
                if (variant, bits, seed) in known:
                    continue
                if variant in (OWN, PUBLIC):
                    model, facts = peer(args, variant, bits, seed)
                    row = losses(model, ids, dense) | {"other": losses(model, other)["perplexity"]} | facts
                else:
                    row = measured(args, compressed(args, variant, bits, seed), ids, other, dense)
                values["rows"].append({"variant": variant, "rate": bits, "seed": seed, **row})
                write_results(args.json, values)
                print(json.dumps(values["rows"][-1]), flush=True)


if __name__ == "__main__":
    main()
