#!/usr/bin/env bash
# Train on a Cloud TPU slice, of one host (v3-8, v5litepod-8) or of many (v3-32, v5litepod-64).
#
#   export TPU_NAME=merge ZONE=europe-west4-a
#   launch/tpu_pod.sh train      all steps below, to the end of the training
#
#   launch/tpu_pod.sh create     request the slice, as a queued resource of the same name
#   launch/tpu_pod.sh wait       wait until it is ACTIVE
#   launch/tpu_pod.sh install    copy the last commit to every host, and install it
#   launch/tpu_pod.sh upload     copy the runs that were fetched last to the first host
#   launch/tpu_pod.sh run        start or resume training on all hosts, in the background
#   launch/tpu_pod.sh logs       follow its log; Ctrl-C stops the following, not the training
#   launch/tpu_pod.sh fetch      copy the runs from the first host, which has them, into ./runs
#   launch/tpu_pod.sh delete     delete the slice and the queued resource, with all that is not fetched
#
# `train` fetches the saved runs every FOLLOW_SECONDS. If the slice is preempted, or its training
# killed, the script deletes it, requests another one and resumes there from the fetched runs, at most
# MAX_RESTARTS times. At its end, also after an error or Ctrl-C, it stops the training, which then
# saves, fetches the runs, and deletes the queued resource. Only runs below runs/ are fetched, where
# they are by default.
#
# With --dry-run as the first argument, the script prints its commands and runs none.
# More variables: PROJECT (gcloud's default), ACCELERATOR_TYPE (v3-8), RUNTIME_VERSION (Google's
# version for the type), SPOT (1 for preemptible slices), CONFIG (configs/merge1.py), MAX_RESTARTS
# (10), FOLLOW_SECONDS (300), POLL_SECONDS (30). Arguments after `run` or `train` are passed on to
# hiercls_jax.main. Needs git, and gcloud, logged in.
set -euo pipefail

LOST=75         # status of a step that failed because the slice is gone or was restarted
MAX_SILENCE=10  # failed questions in a row after which the script gives up

usage() {
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' "${BASH_SOURCE[0]}"
}

die() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

note() {
  $dry_run || printf 'tpu_pod.sh: %s\n' "$1" >&2
}

dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi
action=${1:-help}
[[ $# -eq 0 ]] || shift

case $action in
  train | create | wait | install | upload | run | logs | fetch | delete) ;;
  help | --help | -h)
    usage
    exit 0
    ;;
  *)
    die "unknown action '$action'; it is one of train, create, wait, install, upload, run, logs,\
 fetch, delete"
    ;;
esac
[[ $action == run || $action == train || $# -eq 0 ]] ||
  die "unexpected argument '$1' after $action"
[[ -n ${TPU_NAME:-} ]] || die "set TPU_NAME, the name of the slice"
[[ -n ${ZONE:-} ]] || die "set ZONE, such as europe-west4-a"
MAX_RESTARTS=${MAX_RESTARTS:-10}
FOLLOW_SECONDS=${FOLLOW_SECONDS:-300}
POLL_SECONDS=${POLL_SECONDS:-30}
for name in MAX_RESTARTS FOLLOW_SECONDS POLL_SECONDS; do
  [[ ${!name} =~ ^[0-9]+$ ]] || die "$name is a whole number, not '${!name}'"
done
((FOLLOW_SECONDS > 0)) || die "FOLLOW_SECONDS is above 0, not $FOLLOW_SECONDS"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
arguments=("--config=${CONFIG:-configs/merge1.py}" --distributed "$@")
where=(--zone="$ZONE")
[[ -z ${PROJECT:-} ]] || where+=(--project="$PROJECT")
spot=()
case ${SPOT:-0} in
  0) ;;
  1) spot=(--spot) ;;
  *) die "SPOT is 1 for a preemptible slice or 0, not '$SPOT'" ;;
esac
accelerator=${ACCELERATOR_TYPE:-v3-8}
runtime=${RUNTIME_VERSION:-}
if [[ -z $runtime && ($action == create || $action == train) ]]; then
  case $accelerator in # Google Cloud's documentation, "TPU software versions" (2025)
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *)
      die "set RUNTIME_VERSION, the TPU software version for ACCELERATOR_TYPE '$accelerator'; it is\
 known for v2-*, v3-*, v4-*, v5litepod-*, v5p-* and v6e-*"
      ;;
  esac
fi
fetched=runs/$TPU_NAME.tar.gz
if $dry_run; then
  scratch=${TMPDIR:-/tmp}/hiercls_jax
else
  scratch=$(mktemp -d)
fi
child=          # process group of the command that `interruptible` runs
owned=false     # whether this script requests slices (`train`), so that it must delete them
created=false   # whether there is a slice that it requested
training=false  # whether `train` has started a training that may still run
exec 3>&1 # a dry run prints here, even inside $(…)

# Run a command, or in a dry run print it so that a shell would read the same words.
run() {
  if $dry_run; then
    printf '%q ' "$@" >&3
    printf '\n' >&3
  else
    "$@"
  fi
}

queued_resources() {
  run gcloud compute tpus queued-resources "$@" "${where[@]}"
}

# Run a shell command on one host (its number) or on all. ssh notices a lost host within a minute.
on_host() {
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker="$1" --command="$2" \
    --ssh-flag=-oServerAliveInterval=15
}

# Run a command in the background, so that this script acts on a signal at once.
interruptible() {
  if $dry_run; then
    "$@"
    return
  fi
  local code=0
  set -m # in a process group, which clean_up can end as a whole
  "$@" < /dev/null &
  child=$!
  set +m
  wait "$child" || code=$?
  child=
  return "$code"
}

# Below, && and || join the steps, because set -e has no effect in a function whose status is tested.

create() {
  queued_resources create "$TPU_NAME" --node-id="$TPU_NAME" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" "${spot[@]}"
}

# Print the state of the queued resource, or UNKNOWN if gcloud fails.
state() {
  local answer
  answer=$(queued_resources describe "$TPU_NAME" --format='value(state.state)') || answer=UNKNOWN
  if $dry_run; then answer=ACTIVE; fi
  printf '%s\n' "${answer:-UNKNOWN}"
}

wait_until_active() {
  local now before='' silence=0
  while true; do
    now=$(state)
    [[ $now == "$before" ]] || note "$TPU_NAME is $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      SUSPENDING | SUSPENDED) return "$LOST" ;;
      FAILED | DELETING)
        note "$TPU_NAME is $now; why: gcloud compute tpus queued-resources describe"
        return 1
        ;;
      UNKNOWN) ((silence += 1)) ;;
      *) silence=0 ;;
    esac
    if ((silence == MAX_SILENCE)); then
      note "gcloud could not tell the state of $TPU_NAME $silence times in a row"
      return 1
    fi
    interruptible sleep "$POLL_SECONDS"
  done
}

# A new host updates itself. apt waits for the lock of packages, but not for the lock of lists.
install() {
  run git archive --format=tar.gz --output="$scratch/hiercls_jax.tar.gz" HEAD &&
    run gcloud compute tpus tpu-vm scp "$scratch/hiercls_jax.tar.gz" \
      "$TPU_NAME:hiercls_jax.tar.gz" "${where[@]}" --worker=all &&
    on_host all "set -e; timeout 300 sh -c 'until sudo apt-get update -q; do sleep 5; done'
sudo apt-get install -o DPkg::Lock::Timeout=600 -qy python3.11-venv
mkdir -p hiercls_jax; tar -xzf hiercls_jax.tar.gz -C hiercls_jax; cd hiercls_jax
python3.11 -m venv .venv
.venv/bin/pip install -q -c constraints.txt -e . 'jax[tpu]'
.venv/bin/python -c 'import hiercls_jax'"
}

upload() {
  run gcloud compute tpus tpu-vm scp "$fetched" "$TPU_NAME:runs.tar.gz" "${where[@]}" --worker=0 &&
    on_host 0 "mkdir -p hiercls_jax && tar -xzf runs.tar.gz -C hiercls_jax"
}

# Try a step three times, because connections break, and a new slice is reachable only a little after
# it is ACTIVE. Status: that of the last attempt, or LOST.
insist() {
  local attempt code
  for attempt in 1 2 3; do
    code=0
    "$1" || code=$?
    if ((code == 0)); then return; fi
    if lost; then return "$LOST"; fi
    note "attempt $attempt of 3 to $1 failed with status $code"
    interruptible sleep "$POLL_SECONDS"
  done
  return "$code"
}

# The training holds a lock, so that a host that is told twice to start it starts one.
start() {
  local words
  words=$(printf '%q ' "${arguments[@]}")
  on_host all "set -e; cd hiercls_jax; exec 9> lock
if ! flock --nonblock 9; then echo 'it runs already; launch/tpu_pod.sh logs follows it'; exit; fi
mkdir -p runs; rm -f status pid; touch runs/log.txt; wc -c < runs/log.txt > followed
watched='\"\$@\" & echo \$! > pid; wait \$!; echo \$? > status'
nohup sh -c \"\$watched\" sh .venv/bin/python -m hiercls_jax.main ${words}>> runs/log.txt 2>&1 < /dev/null &
until [ -s pid ] || ! kill -0 \$! 2> /dev/null; do sleep 0.1; done
echo 'started; launch/tpu_pod.sh logs follows it'"
}

# Status 0: the slice is certainly gone.
lost() {
  case $(state) in
    ACTIVE | UNKNOWN) return 1 ;;
  esac
}

# Print the first host's log from byte $1 on, for FOLLOW_SECONDS or until the training ends.
follow_log() {
  local ask="cd hiercls_jax; from=\$((\$(cat followed) + $1))
timeout $FOLLOW_SECONDS tail --pid=\"\$(cat pid)\" -c \"+\$from\" -F runs/log.txt; true"
  if $dry_run; then
    on_host 0 "$ask"
  else
    on_host 0 "$ask" | tee "$scratch/log"
  fi
}

# Follow the training to its end, and fetch the runs meanwhile. Status: that of the training, or LOST.
follow() {
  local from=1 silence=0 answer
  while true; do
    answer=
    if interruptible follow_log "$from" && answer=$(ask_how_it_goes); then
      silence=0
    elif ((++silence == MAX_SILENCE)); then
      note "the first host could not be reached $silence times in a row"
      return 1
    fi
    if $dry_run; then answer=0; fi
    [[ ! -e $scratch/log ]] || from=$((from + $(wc -c < "$scratch/log")))
    if lost; then return "$LOST"; fi
    case $answer in
      '') interruptible sleep "$POLL_SECONDS" ;; # the connection broke; the training may still run
      running) fetch || note "the runs could not be fetched; trying again later" ;;
      0) return ;;
      143 | vanished) return "$LOST" ;; # the hosts were restarted
      *)
        interruptible sleep "$POLL_SECONDS" # a preempted slice loses hosts before its state changes
        if lost; then return "$LOST"; fi
        note "the training ended with status $answer; the end of every host's log:"
        on_host all "tail -n 20 hiercls_jax/runs/log.txt" || true
        case $answer in
          134 | 137) return "$LOST" ;; # JAX ended it because another host is gone; it was killed
        esac
        return "$answer"
        ;;
    esac
  done
}

# Print the exit status of the training, `running`, or `vanished` if it left no status.
ask_how_it_goes() {
  on_host 0 "cd hiercls_jax; if [ -s status ]; then cat status
elif kill -0 \"\$(cat pid)\"; then echo running; else echo vanished; fi"
}

stop() {
  on_host 0 "cd hiercls_jax; kill -s TERM \"\$(cat pid)\"
timeout 120 tail --pid=\"\$(cat pid)\" -f /dev/null"
}

# Copy the runs here. In the archive checkpoints come first, so that none lacks the records before it.
fetch() {
  on_host 0 "set -e; cd hiercls_jax; tar --sort=name -czf ../runs.part runs || [ \$? -eq 1 ]
mv ../runs.part ../runs.tar.gz" &&
    run mkdir -p runs &&
    run gcloud compute tpus tpu-vm scp "$TPU_NAME:runs.tar.gz" "$fetched.part" "${where[@]}" \
      --worker=0 &&
    run mv "$fetched.part" "$fetched"
}

unpack() {
  run tar -xzf "$fetched"
}

delete() {
  queued_resources delete "$TPU_NAME" --force "$@"
}

# Status 0: the name is free. If gcloud fails, the script ends, before it could delete anything.
is_free() {
  local names name
  names=$(queued_resources list --format='value(name)') || exit
  while IFS= read -r name; do
    if [[ ${name##*/} == "$TPU_NAME" ]]; then return 1; fi
  done <<< "$names"
}

# Delete the slice, if there is one: a failed request may have left one, and somebody else may have
# deleted it. Status 0: there is none. In parentheses, a failing is_free does not end the script.
remove() {
  if ! $created && (is_free); then return 0; fi
  created=false
  delete --quiet || (is_free)
}

# Train on one slice until the training ends or the slice is lost.
live() {
  local code=0
  create || exit
  created=true
  { wait_until_active && prepare && training=true && insist start && follow && bring_home; } ||
    code=$?
  if ((code == 0)); then training=false; fi
  return "$code"
}

prepare() {
  insist install || return
  [[ ! -e $fetched ]] || insist upload
}

bring_home() {
  local code=0
  insist fetch || code=$?
  case $code in
    0) unpack ;;
    "$LOST") return "$LOST" ;;
    *)
      note "the last fetched runs are in $fetched; the same command again goes on from there"
      return 1
      ;;
  esac
}

train() {
  local code restarts=0
  is_free ||
    die "there is a queued resource $TPU_NAME already, which train would delete at its end; choose\
 another TPU_NAME, or use run, logs and fetch, and then delete"
  owned=true
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  while true; do
    code=0
    live || code=$?
    if ((code == 0)); then break; fi
    ((code == LOST)) || exit "$code"
    ((restarts < MAX_RESTARTS)) || die "the slice was lost $((restarts + 1)) times, and MAX_RESTARTS\
 is $MAX_RESTARTS; the same command again goes on from the fetched runs" 1
    ((restarts += 1))
    note "the slice was lost; restart $restarts of at most $MAX_RESTARTS"
    save
    remove
  done
}

# Stop a training that still runs, which makes it save, and fetch the runs.
save() {
  if ! $training; then return 0; fi # in a trap, `return` alone gives the status from before it
  training=false
  if lost; then return 0; fi
  stop || true
  fetch || note "the runs could not be fetched after the last save"
}

clean_up() {
  local code=$1
  trap '' HUP INT TERM # nothing may interrupt the rest
  if [[ -n $child ]]; then kill -s TERM -- "-$child" 2> /dev/null || true; fi
  if $owned; then
    save
    if ! remove; then
      note "$TPU_NAME could not be deleted and costs money until it is: launch/tpu_pod.sh delete"
      if ((code == 0)); then code=1; fi
    fi
  fi
  $dry_run || rm -rf "$scratch"
  exit "$code"
}
trap 'clean_up $?' EXIT

case $action in
  train) train ;;
  create) create ;;
  wait) wait_until_active ;;
  install) install ;;
  upload) upload ;;
  run) start ;;
  logs) on_host 0 "tail -n 50 -F hiercls_jax/runs/log.txt" ;;
  fetch) fetch && unpack ;;
  delete) delete ;;
esac
