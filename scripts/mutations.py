"""Does the suite notice? Plants one fault after the other in a copy of the checkout and runs the tests of that room.

    python scripts/mutations.py              # all, some minutes
    python scripts/mutations.py packing.py   # those in files whose path has these letters

Each fault is a text that stands once in its file, what takes its place, and the test files that are to fail. Exit code
1: a fault survived; 2: a text is no longer found once, or the tests fail without any fault.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "bundles", "results", "build", "*.egg-info", "__pycache__", ".*_cache"
)


@dataclass(frozen=True)
class Mutation:
    """A fault: in `file` (below kquant_cli/) `old` becomes `new`; `tests` (below tests/) are to fail."""

    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation("packing.py", "while levels**digits > 256**size", "while levels**digits >= 256**size", "test_packing.py"),
    Mutation("packing.py", "torch.int32 if size <= 3", "torch.int32 if size <= 4", "test_packing.py"),
    Mutation("packing.py", "part[:, byte] << 8 * byte", "part[:, byte] << 7 * byte", "test_packing.py"),
    Mutation("bases/dct.py", "scale[0] = math.sqrt(1 / n)", "scale[0] = math.sqrt(2 / n)", "bases"),
    Mutation(
        "bases/hadamard_dct.py",
        "return z.transpose(1, 2).reshape(x.shape)",
        "return z.reshape(x.shape)",
        "bases/test_basis_definitions.py",
    ),
    Mutation(
        "bases/application.py",
        "transform(x.T, 1 - dim % 2",
        "transform(x.T, dim % 2",
        "bases/test_basis_application.py",
    ),
    Mutation(
        "bases/application.py",
        "compute = torch.promote_types(matrix.dtype, torch.float32)",
        "compute = torch.promote_types(matrix.dtype, torch.bfloat16)",
        "bases/test_basis_application.py",
    ),
    Mutation(
        "codebooks/nearest.py",
        "decided.narrow(axis, 0, 1).fill_(-1)",
        "decided.narrow(axis, 0, 0).fill_(-1)",
        "codebooks/test_nearest.py",
    ),
    Mutation(
        "decomposition/matrix.py",
        "live = live * (carried.norms[2] >= target) * (",
        "live = live * (",
        "decomposition/test_decompose_matrix.py",
    ),
    Mutation(
        "codebooks/integer_grids.py",
        "ldexp(1.0, exponent - 7)",
        "ldexp(1.0, exponent - 8)",
        "codebooks/test_integer_grids.py",
    ),
    Mutation(
        "encoders/annealed/encode.py",
        "(unit / step).float()",
        "(step / unit).float()",
        "encoders/annealed/test_annealed_encode.py",
    ),
    Mutation(
        "encoders/annealed/least_squares.py",
        "bases.couple_adjoint(x - u.float()[chosen])",
        "bases.couple_adjoint(x)",
        "encoders/annealed/test_least_squares.py",
    ),
    Mutation(
        "encoders/annealed/hard_sweeps_triton.py",
        "if error < tl.load(least_ptr + row):",
        "if error > tl.load(least_ptr + row):",
        "encoders/annealed/test_hard_sweeps.py",
    ),
    Mutation(
        "encoders/annealed/soft_assignment_triton.py",
        "tl.where(inside, field - new, 0.0)",
        "field - new",
        "encoders/annealed/test_soft_assignment.py",
    ),
    Mutation(
        "bundle/staging.py",
        'file_sha256(tensors) != values["sha256"]',
        'len(file_sha256(tensors)) != len(values["sha256"])',
        "bundle/test_staging.py",
    ),
    Mutation(
        "checkpoint/fingerprint.py",
        "torch.stack(torch.aminmax(wide))",
        "torch.aminmax(wide).max",
        "compress/test_overlapped_runs.py",
    ),
    Mutation("overlap.py", "self._thread.shutdown(wait=True)", "self._thread.shutdown(wait=False)", "test_overlap.py"),
    Mutation(
        "evaluation/windows.py",
        "return min(self.scored, self.end - self.begin - 1)",
        "return self.scored",
        "evaluation/test_windows.py",
    ),
    Mutation("evaluation/jackknife.py", "math.sqrt((n - 1) / n *", "math.sqrt(1 / n *", "evaluation/test_metrics.py"),
    Mutation(
        "allocation/knapsack.py",
        "(overs <= gap) & (sums + needed <= budget)",
        "overs <= gap",
        "allocation/test_knapsack.py",
    ),
    Mutation("allocation/knapsack.py", "if e <= gap]", "if e <= gap / 2]", "allocation/test_knapsack.py"),
    Mutation(
        "runtime/products/reference.py",
        "first[:, rows] += b @ v.T",
        "first[:, rows] = b @ v.T",
        "runtime/test_linear.py runtime/test_native_product.py",
    ),
    Mutation(
        "runtime/operators.py",
        "b = None if b is None else b * col_scale.to(a.dtype)",
        "b = None if b is None else b",
        "runtime/test_linear.py",
    ),
    Mutation(
        "runtime/operators.py",
        "part if col_scale is None else part * col_scale",
        "part if True else part * col_scale",
        "runtime/test_operators.py",
    ),
    Mutation(
        "runtime/products/native.py",
        "torch.mm(b, part[:, packed.columns :].T, out=second[:, rows])",
        "torch.mm(a, part[:, packed.columns :].T, out=second[:, rows])",
        "runtime/test_native_product.py",
    ),
    Mutation(
        "native/layer.h",
        "scale * matrix.factor * y[token",
        "scale * y[token",
        "runtime/test_load_bundle.py runtime/test_decoder.py",
    ),
    Mutation("native/lookup.h", "poison += (x + y) * 0.0f;", "", "runtime/test_blocks.py"),
    Mutation("native/blocks.h", "<< (6 + upper);", "<< 6;", "runtime/test_blocks.py"),
    Mutation("native/dense.h", "u[h * bases.order + c] +=", "u[h * bases.order + c] -=", "runtime/test_blocks.py"),
    Mutation("native/transform.h", "now[i] += bases.second", "now[i] -= bases.second", "runtime/test_blocks.py"),
    Mutation("native/decoder.h", "decoder.heads / decoder.kv_heads, size", "1, size", "runtime/test_decoder.py"),
    Mutation(
        "runtime/decoder_stack.py",
        "(mask is not None and (mask.shape != (1, past + 1) or not mask.all()))",
        "False",
        "runtime/test_decoder.py",
    ),
    Mutation(
        "runtime/decoder_stack.py",
        "not (_same(keys, room[0]) and _same(values, room[1]))",
        "False",
        "runtime/test_decoder.py",
    ),
    Mutation(
        "runtime/input_transform.py",
        "self.together = False",
        "pass",
        "runtime/test_blocks.py",
    ),
    Mutation(
        "native/product.cpp",
        "return job.digits - 1 - k;",
        "return k;",
        "runtime/test_native_product.py",
    ),
    Mutation(
        "runtime/products/gpu.py",
        '"widen": not a.is_cuda and a.dtype == torch.bfloat16',
        '"widen": False',
        "runtime/test_triton_product.py",
    ),
    Mutation(
        "runtime/products/triton_dense.py",
        "y = y * tl.load(second_ptr + column",
        "y = y * tl.load(first_ptr + column",
        "runtime/test_dense_product.py",
    ),
    Mutation("runtime/products/trial.py", "if found <= bound else", "if True else", "runtime/test_dense_product.py"),
    Mutation(
        "runtime/products/look_up.py",
        "if (low + n < 0) == p and",
        "if",
        "runtime/test_look_up.py",
    ),
    Mutation(
        "native/cuda/product.cu",
        "ibyte < words && 8 * k < irows",
        "8 * k < irows",
        "runtime/test_cuda_product.py",
    ),
    Mutation(
        "native/cuda/activations.cu",
        "bytes(w0 + 128 >> 8, ",
        "bytes(w0 >> 8, ",
        "runtime/test_cuda_product.py",
    ),
    Mutation("native/cuda/outputs.cu", "W[i] * second[", "W[i] * first[", "runtime/test_output_side.py"),
    Mutation("runtime/products/gpu.py", "1 if size <= NARROW else 2", "1", "runtime/test_triton_product.py"),
    Mutation(
        "checkpoint/selection.py",
        "if bias.shape == (columns,) and rows != columns:",
        "if bias.shape == (rows,) and rows != columns:",
        "checkpoint/test_selection.py",
    ),
    Mutation(
        "bundle/whole.py",
        'if digests and file_sha256(file) != facts["sha256"]:',
        'if digests and len(file_sha256(file)) != len(facts["sha256"]):',
        "bundle/test_reader.py",
    ),
    Mutation("bundle/whole.py", "if leads_outside(path, name):", "if False:", "bundle/test_whole.py"),
    Mutation("bundle/whole.py", "if name in own or not (", "if True or not (", "bundle/test_whole.py"),
    Mutation("bundle/results.py", "of != fingerprint and", "False and", "bundle/test_results.py"),
    Mutation(
        "packing.py", "(numbers >= limits).sum()", "(numbers > limits).sum()", "test_packing.py bundle/test_verify.py"
    ),
    Mutation("compress/verify_source.py", "TOLERANCE = 1e-3", "TOLERANCE = 1e3", "compress/test_verify_source.py"),
    Mutation("files/json_object.py", "> MOST_VALUES:", "> 1e9:", "files/test_json_object.py"),
    Mutation("cli/console.py", "text=printable(segment.text)", "text=segment.text", "cli/test_console.py"),
    Mutation("speed/bench.py", "statistics.median(given)", "max(given)", "speed"),
    Mutation(
        "speed/bench.py",
        "pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})",
        "pthread_sigmask(signal.SIG_BLOCK, ())",
        "speed",
    ),
    Mutation("cli/__init__.py", "print_error(error)\n        sys.exit(2)", "print_error(error)", "cli/test_eval.py"),
]


def main() -> None:
    """Run the mutations that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="letters of a path; default: all")
    parts = parser.parse_args().parts
    chosen = [m for m in MUTATIONS if not parts or any(part in m.file for part in parts)]
    if not chosen:
        refuse(f"no mutation is in a file with {' or '.join(parts)}")
    for mutation in chosen:
        if (count := source(CHECKOUT, mutation).read_text(encoding="utf-8").count(mutation.old)) != 1:
            refuse(f"kquant_cli/{mutation.file} has {mutation.old!r} {count} times, expected once: change MUTATIONS")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / CHECKOUT.name
        shutil.copytree(CHECKOUT, copy, ignore=LEFT_OUT)
        if failed := failing(copy, sorted({test for mutation in chosen for test in mutation.tests.split()})):
            refuse(f"without any fault {failed} fails: mend it first")
        survived = [mutation for mutation in chosen if not is_caught(mutation, copy)]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} caught")
    sys.exit(bool(survived))


def is_caught(mutation: Mutation, copy: Path) -> bool:
    """Plant the fault, run its tests, say what came of it, and take it out again."""
    path = source(copy, mutation)
    whole = path.read_text(encoding="utf-8")
    line = whole[: whole.index(mutation.old)].count("\n") + 1
    path.write_text(whole.replace(mutation.old, mutation.new), encoding="utf-8")
    failed = failing(copy, mutation.tests.split())
    path.write_text(whole, encoding="utf-8")
    print(
        f"{f'caught by {failed}' if failed else 'SURVIVED'}: {mutation.file}:{line}: {mutation.old} -> {mutation.new}"
    )
    sys.stdout.flush()
    return failed is not None


def failing(copy: Path, tests: list[str]) -> str | None:
    """The first of the tests that fails in the copy, or None."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"tests/{name}" for name in tests),
    ]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
    return found[1] if found else None if run.returncode == 0 else f"pytest ({run.stdout[-200:]}{run.stderr[-200:]})"


def source(checkout: Path, mutation: Mutation) -> Path:
    """The file that the mutation changes."""
    return checkout / "kquant_cli" / mutation.file


def refuse(sentence: str) -> None:
    """Exit with code 2."""
    print(sentence, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
