# Sourced by demo.sh, test.sh and results.sh: enters the bundle and its virtual environment, which is made on the first call.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! cmp --silent requirements.txt .venv/requirements.txt; then
    echo "== Installing the pinned packages into .venv (once, some minutes)"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, found $(python3 --version)" >&2; exit 1; }
    python3 -m venv .venv && .venv/bin/python -m pip install --disable-pip-version-check --requirement requirements.txt &&
        cp requirements.txt .venv/ || exit 1
fi
export PATH="$PWD/.venv/bin:$PATH"
