"""A stand-in for gcloud and its cloud: one queued resource, whose hosts are folders here.

A command that is sent by ssh runs, by bash, in the folder of the host. Each call is a line of
`$CLOUD/calls.jsonl`. `$CLOUD/plan.json` decides what happens:

    create          exit status of `create`; it still makes a slice if `lives` has one for it
    delete          exit status of `delete`
    others          names that are taken
    unready         how many times copying to a slice fails
    unstarted       how many times starting reaches the first host alone
    lives           what happens to each slice in turn:

    finish          the training ends well
    fail            the training exits with 1
    told            the training exits with 143, as after an orderly reboot
    crash           the training ends without a status, as after a crash of the host
    half            it crashes on the last host alone, and exits with 134 on the others
    killed          the training is killed, as if memory ran out
    stillborn       the shell that starts the training ends before it has written a pid
    flaky           the training ends well, but after its start `outage` calls fail
    forever         the training runs until it gets SIGTERM
    preempt         like forever, but after `fetches` (1) fetches the slice is suspended
    removed         like preempt, but somebody else deletes the queued resource
    never           the slice is suspended before it is active
    refused         the request fails
"""

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

# shutil and subprocess are imported in the functions that need them: a test calls this program 20
# times, and their import is half of a call.

HOSTS = ("0", "1")
TRAINING = """#!/bin/bash
# Counts in runs/count, from where it was. No host goes on before all have started.
[[ $2 == hiercls_jax.main ]] || exit 0
trap 'echo stopped >> runs/count; exit 143' TERM
printf 'argument: %s\\n' "$@"
echo start >> runs/count
touch ../began
until [[ -e ../../0/began && -e ../../1/began ]]; do sleep 0.05; done
case $LIFE in
  fail) echo 'error: no such thing'; exit 1 ;;
  told) exit 143 ;;
  crash) kill -s KILL $PPID $$ ;;
  half)
    if [[ $PWD == */1/hiercls_jax ]]; then
      touch ../gone
      kill -s KILL $PPID $$
    fi
    until [[ -e ../../1/gone ]]; do sleep 0.05; done
    exit 134
    ;;
  killed) kill -s KILL $$ ;;
  finish | flaky) exit 0 ;;
esac
while :; do sleep 0.2; done
"""
COMMANDS = {  # of a host, for installing and starting
    # At first another apt holds the lock of the lists, and for long that of the packages.
    "sudo": """#!/bin/sh
case $* in
  *update*) [ -e updated ] || { touch updated; exit 100; } ;;
  *DPkg::Lock::Timeout=*) ;;
  *) exit 100 ;;
esac
""",
    "sleep": "#!/bin/sh\nexec /bin/sleep 0.05\n",
    "sh": """#!/bin/bash
[[ $LIFE != stillborn || $* != *hiercls_jax.main* ]] || kill -s KILL $$
exec /bin/sh "$@"
""",
    "python3.11": f"""#!/bin/bash
mkdir -p .venv/bin
printf '#!/bin/sh\\n' > .venv/bin/pip
cat > .venv/bin/python <<'EOF'
{TRAINING}EOF
chmod +x .venv/bin/*
""",
}


def option(words: list[str], name: str) -> str | None:
    """Return the value of `--name=value`."""
    return next((w.split("=", 1)[1] for w in words if w.startswith(f"--{name}=")), None)


def resource(cloud: Path, words: list[str]) -> int:
    """Carry out `queued-resources VERB NAME`; the state is in `$CLOUD/state`."""
    plan = json.loads((cloud / "plan.json").read_text())
    state = cloud / "state"
    verb, name = words[0], words[1]
    if verb == "list":
        ours = [(cloud / "name").read_text()] if state.exists() else []
        for taken in plan.get("others", []) + ours:
            print(f"projects/p/locations/z/queuedResources/{taken}")
    elif verb == "create":
        if plan.get("create") and not plan["lives"]:
            return plan["create"]
        life = plan["lives"].pop(0)
        (cloud / "plan.json").write_text(json.dumps(plan))
        (cloud / "life").write_text(life)
        (cloud / "name").write_text(name)
        first = {"never": "SUSPENDED", "refused": "FAILED"}.get(life, "ACTIVE")
        state.write_text(f"ACCEPTED WAITING_FOR_RESOURCES PROVISIONING {first}")
        (cloud / "unready").write_text(str(plan.get("unready", 0)))
        (cloud / "fetches").write_text(str(plan.get("fetches", 1) - 1))
        for host in HOSTS:
            (cloud / "hosts" / host).mkdir(parents=True)
        (cloud / "unstarted").write_text(str(plan.get("unstarted", 0)))
        return plan.get("create", 0)
    elif not state.exists() or name != (cloud / "name").read_text():
        print("ERROR: NOT_FOUND: the requested entity was not found", file=sys.stderr)
        return 1
    elif verb == "describe":
        if counted_down(cloud / "outage"):
            return 1
        now, *later = state.read_text().split()
        if (cloud / "suspend").exists():
            lose(cloud)
            now, later = "SUSPENDED", []
        state.write_text(" ".join(later or [now]))
        print(now)
    elif verb == "delete":
        if plan.get("delete"):
            return plan["delete"]
        lose(cloud)
        state.unlink()
    return 0


def counted_down(path: Path) -> bool:
    """Take 1 from the number in a file; return whether there was one to take."""
    count = int(path.read_text()) if path.exists() else 0
    path.write_text(str(max(0, count - 1)))
    return count > 0


def lose(cloud: Path, grace: float = 0) -> None:
    """Take the hosts away, and `grace` seconds later all that runs there."""
    import shutil

    gone = cloud / "gone"
    with contextlib.suppress(FileNotFoundError):
        (cloud / "hosts").rename(gone)
    time.sleep(grace)
    for pid in gone.glob("*/hiercls_jax/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(gone, ignore_errors=True)
    (cloud / "suspend").unlink(missing_ok=True)


def vm(cloud: Path, words: list[str]) -> int:
    """Carry out `tpu-vm ssh NAME` or `tpu-vm scp FROM TO` on one host or on all."""
    import shutil
    import subprocess

    name, worker = (cloud / "name").read_text(), option(words, "worker")
    hosts = [cloud / "hosts" / host for host in (HOSTS if worker == "all" else [worker])]
    if not all(host.is_dir() for host in hosts):
        return 255
    if words[0] == "ssh":
        assert words[1] == name
        life = (cloud / "life").read_text()
        if counted_down(cloud / "outage"):
            return 255
        if life == "flaky" and "nohup" in option(words, "command"):
            plan = json.loads((cloud / "plan.json").read_text())
            (cloud / "outage").write_text(str(plan["outage"]))
        path = f"{cloud / 'commands'}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "LIFE": life}
        command = ["bash", "-c", option(words, "command")]
        half = "nohup" in option(words, "command") and counted_down(cloud / "unstarted")
        return max(
            255 * half,
            *(
                subprocess.run(
                    command, cwd=host, env=environment, stdin=subprocess.DEVNULL
                ).returncode
                for host in (hosts[:1] if half else hosts)
            ),
        )
    source, target = words[1:3]
    if source.startswith(f"{name}:"):
        shutil.copyfile(hosts[0] / source.removeprefix(f"{name}:"), target)
        last = not counted_down(cloud / "fetches")
        life = (cloud / "life").read_text()
        if last and life == "preempt":
            (cloud / "suspend").touch()
        if last and life == "removed":
            (cloud / "state").unlink()
            lose(cloud, grace=1)  # meanwhile the training still runs
    elif counted_down(cloud / "unready"):
        return 255
    else:
        for host in hosts:
            shutil.copyfile(source, host / target.removeprefix(f"{name}:"))
    return 0


def main() -> int:
    """Record the call and carry it out."""
    cloud, words = Path(os.environ["CLOUD"]), sys.argv[1:]
    with open(cloud / "calls.jsonl", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(words) + "\n")
    assert words[:2] == ["compute", "tpus"]
    return {"queued-resources": resource, "tpu-vm": vm}[words[2]](cloud, words[3:])


if __name__ == "__main__":
    sys.exit(main())
