#!/usr/bin/env bash
# Run a command in N processes on this machine that train together.
#
#   launch/local.sh 2 python -m hiercls_jax.main --config=configs/merge1.py:quick
#
# Each process gets the command's arguments, then --distributed, --coordinator, --processes and
# --process_id. SIGTERM and Ctrl-C are passed on. The exit status is that of the first process, by
# number, that failed, or 0. With --dry-run before N, the script prints the commands, one a line, and
# runs none. Use it to try out several processes; one process uses the cores of one machine better.
set -euo pipefail
set -m # a process group for each, so that a signal from the terminal reaches it only through here

dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi
count=${1:-}
if ! [[ $count =~ ^[1-9][0-9]*$ && $# -gt 1 ]]; then
  printf 'usage: launch/local.sh [--dry-run] N COMMAND [ARGUMENT …]\n' >&2
  exit 2
fi
shift

free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=$(python3 -c "$free_port")
pids=()
trap 'kill -s TERM "${pids[@]}" 2> /dev/null || true' TERM
trap 'kill -s INT "${pids[@]}" 2> /dev/null || true' INT
for ((i = 0; i < count; i++)); do
  command=("$@" --distributed --coordinator="127.0.0.1:$port" --processes="$count" --process_id="$i")
  if $dry_run; then
    printf '%q ' "${command[@]}"
    printf '\n'
  else
    "${command[@]}" &
    pids+=($!)
  fi
done

status=0
for ((i = 0; i < ${#pids[@]}; i++)); do
  pid=${pids[i]}
  code=0
  wait "$pid" || code=$?
  while kill -0 "$pid" 2> /dev/null; do # a trapped signal interrupts wait
    code=0
    wait "$pid" || code=$?
  done
  case $code in
    0 | 130 | 143) ;; # finished, or stopped and saved
    *) printf 'local.sh: process %d ended with status %d\n' "$i" "$code" >&2 ;;
  esac
  if ((status == 0)); then status=$code; fi
done
exit "$status"
