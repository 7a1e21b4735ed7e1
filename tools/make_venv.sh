#!/bin/sh
# Make .venv with the first Python >= 3.11 found: $PYTHON, python3 or a newer name.
set -eu
for python in "${PYTHON:-python3}" python3 python3.12 python3.13 python3.11; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "Making .venv with $("$python" --version) ..."
        "$python" -m venv .venv || {
            echo "error: $python cannot make .venv; on Debian or Ubuntu install python3-venv" >&2
            exit 1
        }
        exit 0
    fi
done
echo "error: no Python >= 3.11 found; install one, or say where: make PYTHON=/path/python3 ..." >&2
exit 1
