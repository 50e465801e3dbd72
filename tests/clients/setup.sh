#!/usr/bin/env bash
# What the second test tier needs besides requirements.txt; called by scripts/test.sh --clients.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt
bash tests/clients/setup_deploy.sh
bash tests/clients/setup_monai_label.sh
