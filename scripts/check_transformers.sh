#!/usr/bin/env bash
# Run the tests of models that run from codes with other versions of transformers than the one in .venv.
#
#     scripts/check_transformers.sh 5.0.0 5.24.0
#
# Each version is installed into a temporary environment that takes everything else from .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { echo "usage: scripts/check_transformers.sh VERSION..." >&2; exit 2; }
[ -x .venv/bin/python ] || { echo "there is no .venv: run 'make setup' first" >&2; exit 2; }
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in "$@"; do
    python=$folder/$version/bin/python
    .venv/bin/python -m venv "$folder/$version"
    echo "$packages" > "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
    "$python" -m pip install -q --disable-pip-version-check "transformers==$version"
    "$python" -c 'import transformers; print("transformers", transformers.__version__)'
    "$python" -m pytest tests/runtime/test_load_bundle.py
done
