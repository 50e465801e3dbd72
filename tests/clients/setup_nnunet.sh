#!/usr/bin/env bash
# Make .venv-nnunet, the environment in which the benchmark runs nnU-Net's predictor. It sees the packages of .venv: one torch for both.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/setup.sh"
venv=.venv-nnunet
requirements=tests/clients/requirements_nnunet.txt
if ! cmp --silent "$requirements" "$venv/requirements.txt"; then
    echo "== Installing nnU-Net into $venv (once, some minutes)"
    python -m venv "$venv"
    packages='import sysconfig; print(sysconfig.get_path("purelib"))'
    python -c "$packages" >"$("$venv/bin/python" -c "$packages")/bundle.pth"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
    cp "$requirements" "$venv/requirements.txt"
fi
