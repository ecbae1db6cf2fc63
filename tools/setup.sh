#!/bin/sh
# Makes .venv: Python, the pinned torch, what requirements.lock says, and this package, editable.
# TORCH=cpu|cuda (default: cuda where an NVIDIA GPU answers). EXTRAS="libero ray rerun" adds what is locked with the
# rest but large, and that the tabletop does not need. TORCH_CPU_INDEX: where to ask first for torch without CUDA.
set -eu
cd "$(dirname "$0")/.."

torch_version=2.13.0
torch_cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
large_libero="bddl easydict future llvmlite numba opencv-python-headless robosuite termcolor"
large_ray="ray"
large_rerun="rerun-sdk"
# LIBERO declares packages that its simulation never imports, one of which replaces torch: it is in no lock.
libero="hf-libero==0.1.4 --hash=sha256:207f76e2f28bff30f78132223d8592fe8f64b1f8fd90ce7024948ada0d7e2c27"

find_python() {
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if "$candidate" -c "import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))" \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11 to 3.13 with venv was found. Debian: apt-get install python3-venv; or make setup PYTHON=..." >&2
    exit 1
}

# Five seconds in all, also for a name look-up that hangs.
answers() {
    "$python" -c "import os, sys, threading, urllib.request
timer = threading.Timer(5, os._exit, [1])
timer.daemon = True
timer.start()
urllib.request.urlopen(sys.argv[1])" "$1" 2>/dev/null
}

started=$(date +%s)
python=$(find_python)
PYTHON="$python" tools/system_packages.sh rendering

if ! .venv/bin/python -c "import pip" 2>/dev/null; then
    echo "Creating .venv with $($python --version)"
    "$python" -m venv --clear .venv
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }

if [ -z "${TORCH:-}" ]; then
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then TORCH=cuda; else TORCH=cpu; fi
fi
echo "Installing torch $torch_version ($TORCH)"
if [ "$TORCH" = cpu ] && [ "$(uname)" = Linux ] && answers "$torch_cpu_index/torch/"; then
    pip install --no-compile --no-deps --index-url "$torch_cpu_index" "torch==$torch_version"
else
    pip install --no-compile "torch==$torch_version"
fi

echo "Installing what requirements.lock says"
left_out=
case " ${EXTRAS:-} " in *" libero "*) ;; *) left_out="$left_out $large_libero" ;; esac
case " ${EXTRAS:-} " in *" ray "*) ;; *) left_out="$left_out $large_ray" ;; esac
case " ${EXTRAS:-} " in *" rerun "*) ;; *) left_out="$left_out $large_rerun" ;; esac
awk -v left_out="$left_out" '
    BEGIN { n = split(left_out, names, " "); for (i = 1; i <= n; i++) skipped[names[i]] = 1 }
    /^[a-z0-9]/ { split($1, part, "=="); skip = part[1] in skipped }
    !skip' requirements.lock >.venv/requirements.txt
case " ${EXTRAS:-} " in *" libero "*) echo "$libero" >>.venv/requirements.txt ;; esac
pip install --no-compile --no-deps --require-hashes -r .venv/requirements.txt
pip install --no-deps --no-build-isolation --editable .

echo "Ready after $(($(date +%s) - started)) s. Try: make quickstart, or .venv/bin/lawm doctor"
