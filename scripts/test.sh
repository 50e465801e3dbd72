#!/usr/bin/env bash
# Install what is missing, then run the tests. Further arguments go to pytest: bash scripts/test.sh -k labels
#   bash scripts/test.sh --clients    the tests with other programs instead: MONAI Label, ONNX Runtime, OpenVINO, MLflow, ...
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [[ "${1:-}" == --clients ]]; then
    shift
    bash tests/clients/setup.sh
    set -- -m clients "$@"
fi
MONAI_FAIL_ON_DUPLICATE_CONFIG=1 python -m pytest "$@"
