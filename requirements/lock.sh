#!/usr/bin/env bash
# Renews the lock files. The development set is resolved first; the others are parts of it, at the same versions.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-annotate --no-header --no-emit-index-url "$@"
}
compile pyproject.toml --extra dev -o requirements/dev.txt
compile pyproject.toml -c requirements/dev.txt -o requirements/lambda.txt
compile pyproject.toml -c requirements/dev.txt --extra local -o requirements/local.txt
compile pyproject.toml -c requirements/dev.txt --extra gpu -o requirements/gpu.txt
compile requirements/emulator.in -o requirements/emulator.txt
