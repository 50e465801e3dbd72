#!/usr/bin/env bash
# Make .venv-deploy, the environment that tests/clients/test_deploy.py runs MONAI Deploy's operator in: it wants other packages than the bundle.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv=.venv-deploy
# the SDK imports pydicom and highdicom and does not ask for them
sdk=(monai-deploy-app-sdk==4.0.0 pydicom==3.0.2 highdicom==0.28.2)
if ! cmp --silent requirements.txt "$venv/requirements.txt"; then
    echo "== Installing MONAI Deploy into $venv (once, some minutes)"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements.txt "${sdk[@]}"
    cp requirements.txt "$venv/"
fi
