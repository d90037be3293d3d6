#!/usr/bin/env python3
"""Every GPU kernel of the project against the same formula in torch in float64, and the product in a CUDA graph.

    python scripts/check_gpu_kernels.py [--rows 1000] [--columns 4160] [--quick] [--workers N] [--jsonl FILE]

Prints the relative error (Frobenius norm) of each case; the exit code is 1 where one is beyond its bound. The cases
come in the order of their value and are shared by as many processes as there are processors, since most of the time
goes into compiling: a kernel for each case. Last come the kernels of scripts/bench_gpu_product.py, so that it need not
compile them. `--quick`: the first third. It needs torch, triton and numpy, and for the encoder's kernels pydantic and
PyYAML. On a CPU, with TRITON_INTERPRET=1 and small sizes, it checks what it can there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from bench_gpu_product import layer_of
from results import append_row

from kquant_cli.packing import pack
from kquant_cli.runtime.products import Packed, backend_for, product, reference, trial
from kquant_cli.runtime.products.cuda import LEAST_POWER

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUNDS = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 6e-3}
LEVELS = (16, 4, 8, 2, 256, 3, 5, 12, 24, 32, 31, 50, 100, 128)  # from 28 on some have words of over 32 bits
TOKENS = (1, 2, 16)
GROUP = 96
BENCHED = (4096, 11008)  # the shape of scripts/bench_gpu_product.py
MOST_WORKERS = 14  # each has a context on the GPU


@dataclass(frozen=True)
class Case:
    """A kernel: of a product or the encoder (`soft`, `hard`); a layer, by what is for it; a product in a CUDA graph.

    `output`: a layer with coupled bases on the output side.
    """

    kernel: str
    levels: int
    tokens: int = 0
    dtype: str = "float32"
    terms: int = 2
    split: bool = False
    group: int = 0
    shape: tuple[int, int] | None = None

    def __str__(self) -> str:
        more = [f"{self.tokens} tokens, {self.dtype}"] if self.tokens else []
        more += [f"{self.terms} column"] if self.terms == 1 else []
        more += [name for name in ("split", "group") if getattr(self, name)]
        more += ["x".join(map(str, self.shape))] if self.shape else []
        return ", ".join([f"{self.kernel}, {self.levels} levels", *more])


def cases(quick: bool) -> list[Case]:
    """All cases, the most valuable first."""
    found = [Case("soft", 16), Case("hard", 16), Case("graph", 16)]
    found += [Case("product", levels, tokens, "bfloat16") for levels in LEVELS for tokens in TOKENS]
    found += [
        Case("layer", levels, tokens, "bfloat16") for levels in (16, 4, 8, 32, 256, 3) for tokens in (1, 4, 8, 300)
    ]
    found += [Case("output", levels, tokens, "bfloat16") for levels in (16, 4, 8) for tokens in (1, 4, 8, 32, 300)]
    found += [Case(kernel, levels) for kernel in ("soft", "hard") for levels in (4, 256)]
    if not quick:
        found += [Case("output", levels, tokens, "float16") for levels in (32, 3, 256) for tokens in (1, 4, 8, 32, 300)]
        for levels in (16, 5):
            for more in ({"split": True}, {"terms": 1}, {"group": GROUP}, {"split": True, "group": GROUP}):
                found += [Case("product", levels, tokens, "bfloat16", **more) for tokens in (1, 4, 20, 300)]
        found += [
            Case("product", levels, tokens, dtype)
            for dtype in ("float16", "float32")
            for levels in LEVELS
            for tokens in TOKENS
        ]
    bits = (4,) if quick else (4, 2, 3, 8)
    if DEVICE == "cuda":
        found += [Case("product", 2**b, n, "bfloat16", shape=BENCHED) for b in bits for n in (1, 4, 16, 256)]
    return found


def relative_error(results: tuple[torch.Tensor | None, ...], expected: tuple[torch.Tensor | None, ...]) -> float:
    """The largest over the outputs; not a number where a result has one."""
    pairs = [(r, e) for r, e in zip(results, expected, strict=True) if r is not None and e is not None]
    return float(torch.stack([(r.double() - e).norm() / e.norm() for r, e in pairs]).max())


def products(case: Case, rows: int, columns: int) -> float:
    """The error of a product."""
    codes = torch.randint(case.levels, (rows, columns), dtype=torch.uint8, device=DEVICE)
    book = torch.randn(case.levels, case.terms, device=DEVICE)
    scale = torch.rand(rows, -(-columns // GROUP), device=DEVICE) + 0.5 if case.group else None
    packed = Packed(pack(codes, case.levels), book, columns, scale, case.group)
    a, b = torch.randn(2, case.tokens, columns, device=DEVICE).to(getattr(torch, case.dtype))
    if (backend := backend_for(packed, a, case.split)) != "triton":
        raise RuntimeError(f"the product is computed by the backend {backend}")
    expected = reference.product(packed, a.double(), b.double() if case.terms == 2 else None, case.split)
    return relative_error(product(packed, a, b if case.terms == 2 else None, case.split), expected)


def layers(case: Case, rows: int, columns: int) -> float:
    """The error of a layer from its codes, by whatever kernels are for it; one that was switched off is an error."""
    rows = max(LEAST_POWER, rows // LEAST_POWER * LEAST_POWER) if case.kernel == "output" else rows
    codes = torch.randint(case.levels, (rows, columns), dtype=torch.uint8, device=DEVICE)
    book = torch.randint(-126, 127, (case.levels, 2), device=DEVICE) * 0.01
    layer = layer_of(Packed(pack(codes, case.levels), book, columns), case.kernel)
    weight = layer.encoded().decode(torch.float64)
    x = torch.randn(case.tokens, columns, device=DEVICE).to(getattr(torch, case.dtype))
    with torch.no_grad():
        error = relative_error((layer(x),), (x.double() @ weight.T,))
    if off := trial.switched_off():
        raise RuntimeError(f"switched off: {', '.join(map(str, off))}")
    return error


def graph(rows: int, columns: int) -> float:
    """A captured product, replayed on new activations, against the one that is launched: the difference must be 0."""
    codes = torch.randint(16, (rows, columns), dtype=torch.uint8, device="cuda")
    packed = Packed(pack(codes, 16), torch.randn(16, 2, device="cuda"), columns)
    differences = []
    for tokens in (1, 16):
        a, b = torch.randn(2, tokens, columns, device="cuda").bfloat16()
        product(packed, a, b, False)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            result, _ = product(packed, a, b, False)
        a.normal_()
        b.normal_()
        captured.replay()
        differences.append((result - product(packed, a, b, False)[0]).abs().max())
    return float(torch.stack(differences).max())


def averages(levels: int) -> float:
    """A half of a soft sweep, by its kernel and on the CPU in float64."""
    from kquant_cli.encoders.annealed.soft_assignment import average
    from kquant_cli.encoders.annealed.soft_assignment_triton import blocks, half_sweep

    x, qv, s, old = torch.randn(4, 100, 1000, device=DEVICE)
    book = torch.randn(levels, 2, device=DEVICE)
    wide_x, wide_s, wide_old, wide_book = (part.double().cpu() for part in (x, s, old, book))
    t = wide_x - qv.double().cpu()
    errors = []
    for column in (0, 1):
        squares = torch.zeros(blocks(x), device=DEVICE)
        mean, out = half_sweep(x, qv, s, old, book, column, 3.0, 0.6, squares)
        means, new = average(t, wide_s, wide_book, column, 3.0, 0.6, wide_old)
        expected = (means, new if column else wide_x - new)
        errors.append(relative_error((mean.cpu(), out.cpu()), expected))
        if not column:
            errors.append(relative_error((squares.sum().cpu(),), ((t - new).square().sum(),)))
    return max(errors)


def moves(levels: int) -> float:
    """The hard sweeps' kernels: the share of positions that do not get the point that is nearest in float64.

    Points of u and v that a code does not stand for, or a row whose error is off, count as all.
    """
    from kquant_cli.encoders.annealed.hard_sweeps import nearest_codes
    from kquant_cli.encoders.annealed.hard_sweeps_triton import keep, move, with_offsets

    x, qv, s = torch.randn(3, 100, 1000, device=DEVICE)
    book, moving = torch.randn(levels, 2), torch.rand(1000, device=DEVICE) < 0.5
    old = torch.randint(levels, x.shape, dtype=torch.uint8, device=DEVICE)
    codes, best = old.clone(), torch.zeros_like(old)
    rest, v = move(x, qv, s, codes, moving.to(torch.uint8), with_offsets(book).to(DEVICE))
    least = torch.full((len(x),), torch.inf, device=DEVICE)
    keep(rest, qv, codes, best, least)
    points, chosen = book.to(DEVICE), codes.long()
    errors = (rest.double() - qv).square().sum(dim=1)
    right = torch.equal(best, codes) and torch.equal(v, points[:, 1][chosen])
    right &= torch.allclose(rest, x - points[:, 0][chosen], atol=1e-6)
    right &= torch.allclose(least.double(), errors, rtol=1e-5)
    expected = torch.where(moving, nearest_codes((x - qv).double(), s.double(), book), old.long())
    return float((expected != chosen).double().mean()) if right else 1.0


def check(case: Case, rows: int, columns: int) -> tuple[float, float]:
    """The error of a case, and its bound."""
    rows, columns = case.shape or (rows, columns)
    if case.kernel == "soft":
        return averages(case.levels), 1e-5
    if case.kernel == "hard":
        return moves(case.levels), 1e-4
    if case.kernel == "graph":
        return graph(rows, columns), 0.0
    if case.kernel in ("layer", "output"):  # which rounds its activations, too
        return layers(case, rows, columns), 2 * BOUNDS[case.dtype]
    return products(case, rows, columns), BOUNDS[case.dtype] * (1 if DEVICE == "cuda" else 2)  # few entries


def run(chosen: list[Case], rows: int, columns: int, jsonl: Path | None) -> bool:
    """Check the cases one by one, each said as it is known; whether all are good."""
    good = True
    for case in chosen:
        torch.manual_seed(case.levels)
        began = time.perf_counter()
        try:
            error, bound = check(case, rows, columns)
            found = {"error": error, "bound": bound, "ok": error <= bound}  # not so where it is not a number
            text = f"{error:9.2e}  {'ok' if found['ok'] else f'beyond {bound:.0e}'}"
        except Exception as failure:
            text = f"FAILED: {type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
            found = {"failed": text, "ok": False}
        good &= bool(found["ok"])
        print(f"{case!s:<60} {text}", flush=True)
        append_row(jsonl, "kernels", **asdict(case), **found, seconds=round(time.perf_counter() - began, 2))
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=4160)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=max(1, min(MOST_WORKERS, os.cpu_count() or 1)))
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)  # of such a process: which
    parser.add_argument("--jsonl", type=Path)
    args = parser.parse_args()
    if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("there is no CUDA device; TRITON_INTERPRET=1 runs the kernels on the CPU, for tiny sizes")
    chosen = [case for case in cases(args.quick) if DEVICE == "cuda" or case.kernel != "graph"]
    if args.share is not None:
        sys.exit(not run(chosen[args.share :: args.workers], args.rows, args.columns, args.jsonl))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    shares = [
        [sys.executable, *sys.argv, "--workers", str(args.workers), "--share", str(n)] for n in range(args.workers)
    ]
    began = time.perf_counter()
    codes = [process.wait() for process in [subprocess.Popen(share, env=environment) for share in shares]]
    print(f"{len(chosen)} cases by {args.workers} processes in {time.perf_counter() - began:.0f} s", flush=True)
    sys.exit(1 if any(codes) else 0)


if __name__ == "__main__":
    main()
