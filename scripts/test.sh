#!/usr/bin/env bash
# Install what is missing, then run the tests. Further arguments go to pytest: bash scripts/test.sh -k labels
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
MONAI_FAIL_ON_DUPLICATE_CONFIG=1 python -m pytest "$@"
