# Sourced by the other scripts: goes to the bundle's folder and uses its virtual environment, which is made on the first call.
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! cmp --silent requirements.txt .venv/requirements.txt; then
    echo "== Installing the pinned packages into .venv (once, some minutes)"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, found $(python3 --version)" >&2; exit 1; }
    python3 -m venv .venv && .venv/bin/python -m pip install --disable-pip-version-check --requirement requirements.txt &&
        cp requirements.txt .venv/ || exit 1
fi
export PATH="$PWD/.venv/bin:$PATH"
# Threads that wait for each other sleep instead of keeping a core busy: some percent slower alone, several times faster beside other work
# (docs/inference.md).
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

run() { python -m monai.bundle run "$@"; }

# Read --dataset_dir and --output_dir, relative to where the script was called, into $dataset_dir and $out, and the rest into $options.
dataset_dir="" out="" options=()
read_options() {
    while (($#)); do
        case "$1" in
            --dataset_dir=* | --output_dir=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
            --dataset_dir) dataset_dir=$(cd "$called_from" && cd "$2" && pwd); shift 2 ;;
            --output_dir) out=$(cd "$called_from" && mkdir -p "$2" && cd "$2" && pwd); shift 2 ;;
            *) options+=("$1"); shift ;;
        esac
    done
}
