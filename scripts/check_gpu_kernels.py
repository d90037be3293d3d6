#!/usr/bin/env python3
"""Every GPU kernel of the project against the same formula in torch in float64, and the product in a CUDA graph.

    python scripts/check_gpu_kernels.py [--rows 1000] [--columns 4160]

Prints the largest relative error (Frobenius norm) of each kernel; the exit code is 1 where one is beyond its bound. It
needs torch, triton and numpy, and for the encoder's kernel pydantic and PyYAML. The tests marked `gpu` check more; this
runs where there is no pytest.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec

import torch
from bench_gpu_product import layer_of

from kquant_cli.packing import pack
from kquant_cli.runtime.products import Packed, backend_for, product, reference, trial

BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
LEVELS = (2, 3, 4, 5, 8, 12, 16, 24, 32, 256)
TOKENS = (1, 2, 3, 4, 5, 20, 64, 300)
GROUP = 96


def relative_error(results: tuple[torch.Tensor | None, ...], expected: tuple[torch.Tensor | None, ...]) -> float:
    """The largest over the outputs; not a number where a result has one."""
    pairs = [(r, e) for r, e in zip(results, expected, strict=True) if r is not None and e is not None]
    return float(torch.stack([(r.double() - e).norm() / e.norm() for r, e in pairs]).max())


def products(rows: int, columns: int, levels: int, dtype: torch.dtype) -> float:
    """The largest error over the numbers of tokens, one and two columns, the sum and both outputs, with groups."""
    codes = torch.randint(levels, (rows, columns), dtype=torch.uint8, device="cuda")
    scale = torch.rand(rows, -(-columns // GROUP), device="cuda") + 0.5
    errors = []
    for terms in (1, 2):
        book = torch.randn(levels, terms, device="cuda")
        plain = Packed(pack(codes, levels), book, columns)
        for packed in (plain, Packed(plain.codes, book, columns, scale, GROUP)):
            for tokens in TOKENS:
                a, b = torch.randn(2, tokens, columns, device="cuda").to(dtype)
                for split in (False, True)[:terms]:
                    if backend_for(packed, a, split) != "triton":
                        raise SystemExit(f"{levels} levels in {dtype}: the product is computed by another backend")
                    v = b if terms == 2 else None
                    expected = reference.product(packed, a.double(), b.double() if terms == 2 else None, split)
                    errors.append(relative_error(product(packed, a, v, split), expected))
    return float(torch.tensor(errors).max())


def layers(rows: int, columns: int, levels: int, dtype: torch.dtype) -> float:
    """The largest error of a layer from its codes, over the numbers of tokens, by whatever kernels are for them."""
    codes = torch.randint(levels, (rows, columns), dtype=torch.uint8, device="cuda")
    book = torch.randint(-126, 127, (levels, 2), device="cuda") * 0.01
    layer = layer_of(Packed(pack(codes, levels), book, columns))
    weight = layer.encoded().decode(torch.float64)
    errors = []
    for tokens in TOKENS:
        x = torch.randn(tokens, columns, device="cuda").to(dtype)
        with torch.no_grad():
            errors.append(relative_error((layer(x),), (x.double() @ weight.T,)))
    return max(errors)


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
    """The soft assignment of the annealed encoder, by its kernel and on the CPU in float64."""
    from kquant_cli.encoders.annealed.soft_assignment import average

    t, s, old = torch.randn(3, 100, 1000, device="cuda")
    book = torch.randn(levels, 2, device="cuda")
    errors = []
    for column in (0, 1):
        results = average(t, s, book, column, 3.0, 0.6, old)
        wide = (x.double().cpu() for x in (t, s, book))
        expected = average(*wide, column, 3.0, 0.6, old.double().cpu())
        errors.append(relative_error(tuple(r.cpu() for r in results), expected))
    return max(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=4160)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    torch.manual_seed(0)
    good = True

    def report(name: str, error: float, bound: float) -> None:
        nonlocal good
        passed = error <= bound  # not so where it is not a number
        good &= passed
        print(f"{name:<40} {error:9.2e}  {'ok' if passed else f'beyond {bound:.0e}'}", flush=True)

    for levels in LEVELS:
        for dtype, bound in BOUNDS.items():
            name = f"product, {levels} levels, {str(dtype).removeprefix('torch.')}"
            report(name, products(args.rows, args.columns, levels, dtype), bound)
    for levels in LEVELS:
        for dtype in (torch.float16, torch.bfloat16):  # a layer rounds its activations, too
            name = f"layer, {levels} levels, {str(dtype).removeprefix('torch.')}"
            report(name, layers(args.rows, args.columns, levels, dtype), 2 * BOUNDS[dtype])
    for kernel in trial.switched_off():
        print(f"switched off: {kernel}")
        good = False
    report("product in a CUDA graph", graph(args.rows, args.columns), 0.0)
    encoders = find_spec("pydantic") and find_spec("yaml")
    if not encoders:
        print("soft assignment: not checked, for want of pydantic or PyYAML")
    for levels in (4, 16, 256) if encoders else ():
        report(f"soft assignment, {levels} levels", averages(levels), 1e-5)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
