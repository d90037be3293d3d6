#!/usr/bin/env python3
"""What rounding the table of a model's tokens costs: input embedding and tied head encoded, all else dense.

    python scripts/head_bits.py MODEL --wikitext wiki.test.raw [--windows 4] [--seqlen 512] [--json FILE]

The model's head is to be tied to its embedding. The cost is the mean KL divergence of the next token's distribution
from the dense model's, in nats a token.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from results import machine, write_results

from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode
from kquant_cli.runtime import load_model

MOST = 2**20  # letters of the text that are tokenised
WAYS: dict[str, dict[str, Any]] = {
    "uniform, a scale a row": {"encoder": "uniform", "bits": 8, "group_size": 2**20},
    "uniform, groups of 128": {"encoder": "uniform", "bits": 8, "group_size": 128},
    "uniform, groups of 64": {"encoder": "uniform", "bits": 8, "group_size": 64},
    "uniform, groups of 64, 6 bits": {"encoder": "uniform", "bits": 6, "group_size": 64},
    "annealed, fast, 6 bits": {"bits": 6, "effort": "fast"},
    "uniform, groups of 64, 4 bits": {"encoder": "uniform", "bits": 4, "group_size": 64},
    "annealed, fast, 4 bits": {"bits": 4, "effort": "fast"},
}


@torch.inference_mode()
def predictions(model: Any, windows: torch.Tensor) -> list[torch.Tensor]:
    """Logarithms of the next token's probabilities, (seqlen, tokens) a window."""
    return [model(window[None]).logits[0].log_softmax(-1) for window in windows]


def divergence(dense: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """The mean over all tokens."""
    each = [float((p.exp() * (p - q)).sum(-1).mean()) for p, q in zip(dense, found, strict=True)]
    return sum(each) / len(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    loaded = load_model(args.model, device="cpu", dtype="float32")
    count = args.windows * args.seqlen
    text = args.wikitext.read_text(encoding="utf-8")[:MOST]
    ids = loaded.tokenizer(text, return_tensors="pt", verbose=False).input_ids[0, :count].view(args.windows, -1)
    dense = predictions(loaded.model, ids)
    table = loaded.model.get_input_embeddings().weight
    original = table.detach().clone()
    rows = []
    for name, settings in WAYS.items():
        encoded = encode(original, EncoderConfig(**settings))
        with torch.no_grad():
            table.copy_(encoded.decode())
        rows.append({"name": name.partition(", 6")[0].partition(", 4")[0], "bits": encoded.bits_per_weight})
        rows[-1]["kl"] = divergence(dense, predictions(loaded.model, ids))
        print(json.dumps(rows[-1]), flush=True)
        with torch.no_grad():
            table.copy_(original)
    shape = {"shape": list(table.shape), "windows": args.windows, "seqlen": args.seqlen}
    write_results(args.json, {"model": args.model.name, **shape, "machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
