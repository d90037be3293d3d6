#!/usr/bin/env bash
# Everything that needs a GPU, in one command: tests, kernels against references, benchmarks; a table at the end.
#
#   scripts/gpu_check.sh [FOLDER]      results of the benchmarks go to FOLDER (default: scripts/results)
#
# PYTHON names the interpreter (default: .venv/bin/python, or python3 where there is none). No network is used. The exit
# code is 0 where nothing failed (skipped parts are named), 1 where something did, 2 without a GPU or without torch.
set -u

cd "$(dirname "$0")/.." || exit 1
results=${1:-scripts/results}
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
unset TRITON_INTERPRET KQUANT_BACKEND

has() { # has MODULE...: whether Python has all of them
    "$PYTHON" -c 'import importlib.util as i, sys; sys.exit(not all(i.find_spec(m) for m in sys.argv[1:]))' "$@"
}

"$PYTHON" - <<'PYTHON' || exit 2
import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = {
    "torch": ("torch", "everything"),
    "triton": ("triton", "the kernels"),
    "numpy": ("numpy", "the bases"),
    "pydantic": ("pydantic", "the encoders: kquant_cli.config is a schema of it"),
    "PyYAML": ("yaml", "the encoders: kquant_cli.config reads YAML"),
    "transformers": ("transformers", "tests with models"),
    "safetensors": ("safetensors", "tests with bundles"),
    "typer": ("typer", "tests of the command line"),
    "rich": ("rich", "tests of the command line"),
    "pytest": ("pytest", "the tests; without it scripts/check_gpu_kernels.py still checks the kernels"),
}
print(f"Python {sys.version.split()[0]} ({sys.executable})")
for package, (module, use) in PACKAGES.items():
    try:
        found = version(package) if importlib.util.find_spec(module) else "MISSING"
    except PackageNotFoundError:
        found = "there"
    print(f"  {package:<14} {found:<16} for {use}")
if not importlib.util.find_spec("torch"):
    print("There is no torch in this Python, so nothing can run: install it, or name another one, PYTHON=... .")
    sys.exit(1)
import torch

if not torch.cuda.is_available():
    print("This machine has no GPU that torch can use, so nothing was checked.")
    sys.exit(1)
device = torch.cuda.get_device_properties(0)
print(f"{device.name}: {device.total_memory / 2**30:.0f} GiB, {device.multi_processor_count} multiprocessors, "
      f"CUDA {torch.version.cuda}")
PYTHON

table=()
failed=0

part() { # part NAME "MODULES" COMMAND...: run it where the modules are there
    local name=$1 modules=$2 began=$SECONDS code
    shift 2
    printf '\n=== %s\n' "$name"
    # shellcheck disable=SC2086  # a list of words
    if ! has $modules; then
        table+=("$(printf '%-32s skipped  needs %s' "$name" "$modules")")
        return
    fi
    "$@"
    code=$?
    if [ $code -eq 0 ]; then
        table+=("$(printf '%-32s passed   %5d s' "$name" $((SECONDS - began)))")
    else
        table+=("$(printf '%-32s FAILED   %5d s, exit code %d' "$name" $((SECONDS - began)) $code)")
        failed=1
    fi
}

tests=()
while IFS= read -r file; do tests+=("$file"); done < <(grep -rl --include='*.py' 'mark\.gpu' tests | sort)

part "kernels against references" "triton numpy" "$PYTHON" scripts/check_gpu_kernels.py
# Only the files that have such tests are read, and pytest leaves no cache behind.
part "tests marked gpu" "pytest triton numpy pydantic yaml transformers safetensors typer rich" \
    "$PYTHON" -m pytest -m gpu -p no:cacheprovider -rs "${tests[@]}"
part "encoder benchmark" "triton numpy pydantic yaml" \
    "$PYTHON" scripts/bench_gpu_encoder.py --json "$results/gpu-encoder.json"
part "runtime benchmark" "triton numpy" \
    "$PYTHON" scripts/bench_gpu_product.py --json "$results/gpu-product.json"

printf '\n%-32s result\n' "part"
printf '%s\n' "${table[@]}"
exit $failed
