#!/usr/bin/env bash
# Everything that needs a GPU, in one command and 8 minutes: kernels, encoder, tests, a whole model, speed.
#
#   scripts/gpu_check.sh [--quick] [--wheels FOLDER] [FOLDER]
#
#   FOLDER            takes a log a part (NAME.log), numbers (*.json), and rows.jsonl: a JSON object a line, written as
#                     it is known (default: gpu-check)
#   --quick           4 minutes: fewer kernels, a model of 6 layers
#   --wheels FOLDER   wheels of packages that the machine lacks; they go into an environment of their own, offline
#
# PYTHON names the interpreter (default: .venv/bin/python, or python3 where there is none). No network is used. The parts
# come in the order of their value; each has a limit in seconds, and none gets more than is left of the whole
# (GPU_CHECK_SECONDS: another whole). A part whose packages are missing has failed. The exit code is 0 where all parts
# passed, 1 where one failed, ran out of time or was not begun, 2 without a GPU or torch, or for a wrong argument.
set -u

usage() { sed -n '4,10s/^# \{0,1\}//p' "$here/scripts/gpu_check.sh" >&2; exit 2; }

here=$(cd "$(dirname "$0")/.." && pwd) || exit 2
quick='' wheels='' results=''
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=--quick ;;
        --wheels)
            [ $# -gt 1 ] && [ -d "$2" ] || { echo "--wheels needs a folder that is there" >&2; usage; }
            wheels=$(cd "$2" && pwd)
            shift ;;
        -*) echo "$1 is no option" >&2; usage ;;
        *)
            [ -z "$results" ] || { echo "one FOLDER, please: $results or $1" >&2; usage; }
            results=$1 ;;
    esac
    shift
done
results=${results:-gpu-check}
if [ -z "${PYTHON:-}" ]; then
    if [ -x "$here/.venv/bin/python" ]; then PYTHON=$here/.venv/bin/python; else PYTHON=python3; fi
fi
if [ "$quick" ]; then whole=${GPU_CHECK_SECONDS:-240}; else whole=${GPU_CHECK_SECONDS:-480}; fi
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
unset TRITON_INTERPRET KQUANT_BACKEND
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false COLUMNS=160 TRITON_CACHE_DIR="$work/triton"

table=() failed=0 SECONDS=0

row() { # row NAME RESULT EXIT BEGAN: what the table and rows.jsonl say of a part
    table+=("$(printf '%-12s %-9s %5d s' "$1" "$2" $((SECONDS - $4)))")
    [ "$2" = passed ] || failed=1
    printf '{"part": "%s", "result": "%s", "exit": %s, "began": %d, "seconds": %d}\n' \
        "$1" "$2" "$3" "$4" $((SECONDS - $4)) >>"$results/rows.jsonl"
}

part() { # part NAME LIMIT "MODULES" COMMAND...: run it, where the modules are there, for at most LIMIT seconds
    local name=$1 limit=$2 modules=$3 began=$SECONDS left=$((whole - SECONDS)) code missing
    local log=$results/$name.log
    shift 3
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        row "$name" "no time" null "$began"
        return
    fi
    printf '\n=== %s (at %d s, at most %d s)\n' "$name" "$began" "$limit"
    # shellcheck disable=SC2086  # a list of words
    if ! missing=$("$PYTHON" -c 'import importlib.util as i, sys
lacking = [m for m in sys.argv[1:] if not i.find_spec(m)]
print(" ".join(lacking))
sys.exit(bool(lacking))' $modules); then
        echo "needs ${missing:-$modules}, which this Python lacks: put the wheels in a folder, --wheels FOLDER" | tee "$log"
        row "$name" FAILED null "$began"
        return
    fi
    timeout -k 5 "$limit" "$@" </dev/null >"$log" 2>&1
    code=$?
    tail -n "${TAIL:-12}" "$log"
    case $code in
        0) row "$name" passed 0 "$began" ;;
        124 | 137) row "$name" "too long" $code "$began" ;;
        *) row "$name" FAILED $code "$began" ;;
    esac
}

if [ "$wheels" ]; then
    # An environment that has them, and behind them all that the interpreter has. A wheel is a zip file: no pip is needed.
    if ! { "$PYTHON" -m venv --without-pip --system-site-packages "$work/venv" && "$PYTHON" -c '
import pathlib, sys, sysconfig, zipfile
wheels, venv = map(pathlib.Path, sys.argv[1:])
site = pathlib.Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
(site / "outer.pth").write_text("\n".join(outer))
for wheel in sorted(wheels.glob("*.whl")) or sys.exit(f"{wheels} holds no *.whl"):
    zipfile.ZipFile(wheel).extractall(site)' "$wheels" "$work/venv"; } >"$work/wheels.log" 2>&1; then
        tail -n 5 "$work/wheels.log" >&2
        echo "The wheels of $wheels cannot be installed." >&2
        exit 2
    fi
    PYTHON=$work/venv/bin/python
fi
# Where packages have no byte code beside them, and none can be written there, it is made once for all parts.
"$PYTHON" -c 'import importlib.util as i, os, sys
torch = i.find_spec("torch")
sys.exit(bool(torch) and not os.path.exists(torch.cached) and not os.access(os.path.dirname(torch.origin), os.W_OK))' ||
    export PYTHONPYCACHEPREFIX="$work/pycache"
"$PYTHON" "$here/scripts/gpu_machine.py" >"$work/machine.log" 2>&1
code=$?
cat "$work/machine.log"
[ $code -ne 2 ] || exit 2
mkdir -p "$results" && results=$(cd "$results" && pwd) && : >"$results/rows.jsonl" || exit 2
cp "$work/machine.log" "$results/machine.log"
if [ $code -eq 0 ]; then row machine passed 0 0; else row machine FAILED $code 0; fi
cd "$here" || exit 2

rows=(--jsonl "$results/rows.jsonl")
encoders="triton numpy pydantic yaml"
everything="$encoders transformers safetensors tokenizers typer rich"
tests=()
while IFS= read -r file; do tests+=("$file"); done < <(grep -rl --include='*.py' 'mark\.gpu' tests | sort)
if [ "$quick" ]; then limits=(70 45 50 60 40 30) layers=6; else limits=(115 60 80 110 90 50) layers=24; fi

TAIL=30 part kernels "${limits[0]}" "triton numpy" "$PYTHON" scripts/check_gpu_kernels.py $quick "${rows[@]}"
part encoder "${limits[1]}" "$encoders" \
    "$PYTHON" scripts/bench_gpu_encoder.py $quick --json "$results/gpu-encoder.json" "${rows[@]}"
# Only the files that have such tests are read, and pytest leaves no cache behind.
part tests "${limits[2]}" "pytest $everything" \
    "$PYTHON" -m pytest -m gpu -p no:cacheprovider --maxfail 5 -rfs "${tests[@]}"
part compress "${limits[3]}" "$everything" "$PYTHON" scripts/bench_gpu_compress.py --layers $layers \
    --folder "$work/model" --json "$results/gpu-compress.json" "${rows[@]}"
part product "${limits[4]}" "triton numpy" \
    "$PYTHON" scripts/bench_gpu_product.py $quick --json "$results/gpu-product.json" "${rows[@]}"
part generation "${limits[5]}" "$everything" "$PYTHON" -m kquant_cli bench "$work/model/bundle" \
    --against "$work/model/source" --rounds 1 --device cuda --dtype bfloat16 --json "$results/gpu-generation.json"

printf '\n%-12s result, at the end: %d s\n' part $SECONDS
printf '%s\n' "${table[@]}"
exit $failed
