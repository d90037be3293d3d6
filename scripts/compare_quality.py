#!/usr/bin/env python3
"""Perplexity of SmolLM2 (or any small causal model) with all its layers encoded: kquant beside the peers.

    python scripts/compare_quality.py MODEL --wikitext wiki.test.raw [--limit 16] [--seqlen 1024] [--json FILE]
                                      [--rates 4 3 2.5 2] [--only annealed ...]

Every method gets the same matrices, the same windows of the same text, and (with and without) a channel scale from the
same random tokens: in closed form where its error is white, searched by its own error elsewhere. `bits` are what a
method stores over the encoded weights: codes, codebooks, scales of rows, groups and channels. Peers: HQQ by its own
package (pip install hqq), NF4 by its table (bitsandbytes), and a two-dimensional Gaussian grid of the rate of HIGGS
(arXiv 2411.17525) after a random rotation. One model stays in memory, and its weights are replaced.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peers import PEERS, Peer
from results import machine, write_results

from kquant_cli.calibration import InputStatistics, column_energy, searched_scale, statistics_path, white_error_scale
from kquant_cli.checkpoint import content_hash, open_checkpoint
from kquant_cli.compress.plan import Plan, make_plan
from kquant_cli.compress.preparation import SAMPLED_ROWS, prepare
from kquant_cli.config import DENSE, CompressConfig
from kquant_cli.encoders import encode
from kquant_cli.evaluation import EvalOptions, select_tasks
from kquant_cli.runtime import load_model

EXPONENTS = ((0.0, 0.0), (0.6, 0.0), (1.0, 0.0), (1.4, 0.0), (1.0, 1.0))  # of the search for peers
SCALING = {True: "yes", False: "no"}
OURS: dict[str, dict[str, Any]] = {
    "annealed": {"encoder": "annealed"},
    "annealed, best": {"encoder": "annealed", "effort": "best"},
    "greedy (paper)": {"encoder": "greedy", "basis": "hadamard"},
    "kmeans": {"encoder": "kmeans"},
    "uniform, groups of 128": {"encoder": "uniform"},
}


@dataclass
class Bench:
    """The model in memory, its matrices as they were, and how it is measured."""

    source: Path
    work: Path
    plan: Plan
    weights: dict[str, torch.Tensor]
    parameters: dict[str, torch.nn.Parameter]
    measure: Callable[[], list[float]]

    def restore(self) -> None:
        """The weights as they were."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                self.parameters[name].copy_(weight)


def set_up(args: argparse.Namespace, work: Path) -> Bench:
    checkpoint = open_checkpoint(args.model)
    plan = make_plan(checkpoint, CompressConfig(head_bits=DENSE))
    loaded = load_model(args.model, device="cpu", dtype="float32")
    parameters = dict(loaded.model.named_parameters())
    parameters = {job.matrix.name: parameters[job.matrix.tensor] for job in plan.jobs}
    weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    options = EvalOptions(data=args.wikitext, limit=args.limit, seqlen=args.seqlen)
    task = select_tasks("wikitext2", options)["wikitext2"]
    text = task.read(options)
    return Bench(args.model, work, plan, weights, parameters, lambda: list(task.run(loaded, text, options).window_nlls))


def settings_for(name: str, rate: float) -> dict[str, Any]:
    """kquant's settings of that rate: whole bits, the average (annealed), or 5 levels, 2.33 bits, for the others."""
    average = rate != int(rate) and not name.startswith("annealed")
    return OURS[name] | ({"levels": 5} if average else {"bits": rate})


def ours(bench: Bench, name: str, rate: float, scaled: bool, seed: int = 0) -> tuple[float, float]:
    """Put kquant's decoded weights into the model; bits a weight and the mean relative squared error."""
    config = CompressConfig(
        **settings_for(name, rate), head_bits=DENSE, seed=seed, calibration="random" if scaled else "none"
    )
    plan = make_plan(bench.plan.checkpoint, config)
    out = bench.work / "bundle"
    prepared = prepare(plan, out, content_hash(plan.checkpoint), device="cpu", say=lambda text: print(text, flush=True))
    bits = errors = 0.0
    for job in prepared.plan.jobs:
        key, weight = job.matrix.name, bench.weights[job.matrix.name]
        encoded = encode(weight, job.config, prepared.scales.get(key))
        layout = replace(encoded.layout, channel_scale_from=job.scale_owner if job.scale_owner != key else None)
        bits += replace(encoded, layout=layout).bits_per_weight * weight.numel()
        errors += encoded.record.relative_error**2 * weight.numel()
        with torch.no_grad():
            bench.parameters[key].copy_(encoded.decode())
    return bits / plan.weights, errors / plan.weights


def theirs(bench: Bench, peer: Peer, rate: float, scaled: bool) -> tuple[float, float]:
    """The same for a peer: a function from a weight to the decoded weight and its bits."""
    jobs = {job.matrix.name: job for job in bench.plan.jobs}
    bits = errors = 0.0
    for members, moments in groups(bench) if scaled else (([name], None) for name in jobs):
        weights = [bench.weights[name] for name in members]
        d = torch.ones(weights[0].shape[1]) if moments is None else peer_scale(peer, rate, weights, moments)
        for name, weight in zip(members, weights, strict=True):
            decoded, stored = peer.encode(weight * d, rate)
            decoded = decoded / d
            bits += stored + (16 * len(d) if moments is not None and name == members[0] else 0)
            errors += float((decoded - weight).square().sum() / weight.square().sum()) * weight.numel()
            with torch.no_grad():
                bench.parameters[name].copy_(decoded)
    total = sum(job.weights for job in jobs.values())
    return bits / total, errors / total


def groups(bench: Bench) -> Iterator[tuple[list[str], torch.Tensor]]:
    """The layers that share an input and its second moments, measured before by `ours` or now."""
    out = bench.work / "bundle"
    if not statistics_path(out).exists():
        prepare(bench.plan, out, content_hash(bench.plan.checkpoint), device="cpu")
    for group in InputStatistics.load(statistics_path(out)).groups:
        yield list(group.members), group.second_moments


def peer_scale(peer: Peer, rate: float, weights: list[torch.Tensor], moments: torch.Tensor) -> torch.Tensor:
    """The channel scale for a peer: closed form where its error is white, else searched by its error on some rows."""
    energy = column_energy(weights)
    if peer.white:
        return white_error_scale(energy, moments).d
    samples = [weight[:: -(-len(weight) // SAMPLED_ROWS)] for weight in weights]

    def loss(d: torch.Tensor) -> float:
        errors = (peer.encode(sample * d, rate)[0] / d - sample for sample in samples)
        return sum(float(error.double().square().sum(dim=0) @ moments) for error in errors)

    return searched_scale(energy, moments, loss, EXPONENTS).d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--wikitext", type=Path, required=True, help="wiki.test.raw")
    parser.add_argument("--rates", type=float, nargs="+", default=[4, 3, 2.5, 2])
    parser.add_argument("--limit", type=int, default=16, help="windows")
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--only", nargs="+", choices=[*OURS, *PEERS], help="methods")
    parser.add_argument("--seed", type=int, default=0, help="of kquant's signs and random tokens; peers keep theirs")
    parser.add_argument("--scaling", default="both", choices=["both", "yes", "no"], help="with a channel scale, or not")
    parser.add_argument("--json", type=Path, help="rows that are there, of the same windows, stay")
    args = parser.parse_args()
    facts = {"machine": machine(), "model": args.model.name, "limit": args.limit, "seqlen": args.seqlen}
    facts |= {"seed": args.seed} if args.seed else {}
    rows = earlier(args.json, facts)
    with tempfile.TemporaryDirectory() as folder:
        bench = set_up(args, Path(folder))
        dense = bench.measure()
        print(f"dense: perplexity {perplexity(dense):.3f}", flush=True)
        for rate, name, scaled in chosen(args):
            began = time.perf_counter()
            if name in OURS:
                bits, error = ours(bench, name, rate, scaled, args.seed)
            else:
                bits, error = theirs(bench, PEERS[name], rate, scaled)
            seconds = time.perf_counter() - began
            losses = bench.measure()
            bench.restore()
            row = {"rate": rate, "method": name, "scaled": scaled, "bits": bits, "error": error, "seconds": seconds}
            rows[rate, name, scaled] = row | {"losses": losses}
            write_results(args.json, facts | {"dense": dense, "rows": list(rows.values())})
            how = f"{name}{', scaled' if scaled else ''}"
            numbers = f"{bits:.3f} bits, error {error:.5f}, perplexity {perplexity(losses):.3f}"
            print(f"{rate} {how}: {numbers}, {seconds:.0f} s", flush=True)


def chosen(args: argparse.Namespace) -> Iterator[tuple[float, str, bool]]:
    """The rows to be measured: rate, method, whether with a channel scale."""
    for rate in args.rates:
        for name in args.only or [*OURS, *PEERS]:
            if name in OURS or PEERS[name].takes(rate):
                yield from (
                    (rate, name, scaled) for scaled in (True, False) if args.scaling in ("both", SCALING[scaled])
                )


def earlier(file: Path | None, facts: dict[str, Any]) -> dict[tuple[float, str, bool], dict[str, Any]]:
    """The rows of earlier runs of the same model and windows on such a machine, which this run adds to."""
    if file is None or not file.exists():
        return {}
    values = json.loads(file.read_text(encoding="utf-8"))
    if "seed" in values.keys() - facts or any(values.get(key) != value for key, value in facts.items()):
        return {}
    return {(row["rate"], row["method"], row["scaled"]): row for row in values["rows"]}


def perplexity(losses: list[float]) -> float:
    """exp of the mean loss."""
    return math.exp(min(sum(losses) / len(losses), 700))


if __name__ == "__main__":
    main()
