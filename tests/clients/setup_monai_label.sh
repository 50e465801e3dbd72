#!/usr/bin/env bash
# Make .venv-monailabel, the environment that tests/clients/test_monai_label.py starts MONAI Label in: it needs numpy below 2, the bundle not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv=.venv-monailabel
requirements=tests/clients/requirements_monai_label.txt
if ! cmp --silent "$requirements" "$venv/requirements.txt"; then
    echo "== Installing MONAI Label into $venv (once, some minutes)"
    python3 -m venv "$venv"
    install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    "${install[@]}" --requirement "$requirements"
    "${install[@]}" --no-deps monailabel==0.8.5
    # MONAI Label imports two functions of torchvision that serving a bundle never calls, and torchvision's wheels on PyPI do not load
    # beside a CPU build of torch: a module of that name stands in
    torchvision="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchvision"
    mkdir -p "$torchvision"
    touch "$torchvision/__init__.py"
    echo 'make_grid = save_image = None' >"$torchvision/utils.py"
    cp "$requirements" "$venv/requirements.txt"
fi
