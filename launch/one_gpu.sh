#!/usr/bin/env bash
# Everything that one rented GPU can show, in one command and ten minutes:
#
#   launch/one_gpu.sh
#
# It checks the numerics on the device, measures the training steps of all families in float32 and
# bfloat16, trains the fast family on CIFAR-100 (all variants, as many seeds as fit), and writes
# OUT/results.json. If Python or JAX for CUDA is missing, it installs both into .one_gpu first. Flags
# are those of launch/one_gpu.py: --minutes=10, --data=DIR, --out=DIR, --dry_run, --rehearsal, --pack.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if [[ " $* " == *" --dry_run "* || " $* " == *" --help "* ]]; then
  exec "$python" launch/one_gpu.py "$@"
fi
needs='import flax, grain, hiercls_jax, jax, ml_collections, optax, orbax.checkpoint, pytest'
if ! "$python" -c "$needs" 2> /dev/null; then
  python=.one_gpu/bin/python
  if ! "$python" -c "$needs" 2> /dev/null; then
    printf 'one_gpu.sh: installing into .one_gpu\n'
    "${PYTHON:-python3}" -m venv .one_gpu
    "$python" -m pip install -q -e '.[test]' 'jax[cuda12]'
  fi
fi
exec "$python" launch/one_gpu.py "$@"
