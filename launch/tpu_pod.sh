#!/usr/bin/env bash
# Train on a Cloud TPU slice, of one host (v3-8, v5litepod-8) or of many (v3-32, v5litepod-64).
#
#   export TPU_NAME=merge ZONE=europe-west4-a
#   launch/tpu_pod.sh create     make the slice
#   launch/tpu_pod.sh install    copy the last commit to every host, and install it
#   launch/tpu_pod.sh run        start or resume training on all hosts; it goes on without you
#   launch/tpu_pod.sh logs       follow it; Ctrl-C stops the following, not the training
#   launch/tpu_pod.sh fetch      copy the runs back into ./runs, from the first host, which has them
#   launch/tpu_pod.sh delete     delete the slice, and what was not fetched with it
#
# With --dry-run as the first argument, the commands are printed instead of run.
# Further variables: PROJECT (gcloud's own default), ACCELERATOR_TYPE (v3-8), RUNTIME_VERSION
# (tpu-ubuntu2204-base), CONFIG (configs/merge1.py); arguments after `run` are passed on to
# hiercls_jax.main. Needs gcloud, logged in, and git.
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' "${BASH_SOURCE[0]}"
}

die() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi
action=${1:-help}
[[ $# -eq 0 ]] || shift

case $action in
  create | install | run | logs | fetch | delete) ;;
  help | --help | -h)
    usage
    exit 0
    ;;
  *) die "unknown action '$action'; it is one of create, install, run, logs, fetch, delete" ;;
esac
[[ $action == run || $# -eq 0 ]] || die "unexpected argument '$1' after $action"
[[ -n ${TPU_NAME:-} ]] || die "set TPU_NAME, the name that the slice has or gets"
[[ -n ${ZONE:-} ]] || die "set ZONE, such as europe-west4-a"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
where=(--zone="$ZONE")
[[ -z ${PROJECT:-} ]] || where+=(--project="$PROJECT")

# Print a command so that a shell would read the same words, or run it.
run() {
  if $dry_run; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Run a shell command on one host (its number) or on all.
on_host() {
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker="$1" --command="$2"
}

case $action in
  create)
    run gcloud compute tpus tpu-vm create "$TPU_NAME" "${where[@]}" \
      --accelerator-type="${ACCELERATOR_TYPE:-v3-8}" \
      --version="${RUNTIME_VERSION:-tpu-ubuntu2204-base}"
    ;;
  install)
    archive=$(mktemp -u -t hiercls_jax.XXXXXX)
    trap 'rm -f "$archive"' EXIT
    run git archive --format=tar.gz --output="$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:hiercls_jax.tar.gz" "${where[@]}" \
      --worker=all
    on_host all "set -e; sudo apt-get update -q; sudo apt-get install -qy python3.11-venv
mkdir -p hiercls_jax; tar -xzf hiercls_jax.tar.gz -C hiercls_jax; cd hiercls_jax
python3.11 -m venv .venv
.venv/bin/pip install -q -c constraints.txt -e . 'jax[tpu]'
.venv/bin/python -c 'import hiercls_jax'"
    ;;
  run)
    arguments=$(printf '%q ' "--config=${CONFIG:-configs/merge1.py}" --distributed "$@")
    on_host all "set -e; cd hiercls_jax; mkdir -p runs
nohup .venv/bin/python -m hiercls_jax.main ${arguments}>> runs/log.txt 2>&1 < /dev/null &
echo 'started; launch/tpu_pod.sh logs follows it'"
    ;;
  logs) on_host 0 "tail -n 50 -F hiercls_jax/runs/log.txt" ;;
  fetch)
    run gcloud compute tpus tpu-vm scp --recurse "$TPU_NAME:hiercls_jax/runs" . "${where[@]}" \
      --worker=0
    ;;
  delete) run gcloud compute tpus tpu-vm delete "$TPU_NAME" "${where[@]}" ;;
esac
