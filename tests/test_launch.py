"""The launch scripts: what they would run, what they do run, and what they refuse."""

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "launch" / "tpu_pod.sh"
LOCAL = ROOT / "launch" / "local.sh"
VM = {"TPU_NAME": "my tpu", "ZONE": "europe-west4-a"}


def launch(*arguments, path=None, **variables):
    """Run the script with no cloud variables but those given."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TPU_NAME", "ZONE", "PROJECT")}
    environment = kept | variables | ({"PATH": f"{path}:{kept['PATH']}"} if path else {})
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env=environment, cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.fixture
def gcloud(tmp_path):
    """A folder with a `gcloud` that records its arguments and exits with $STATUS."""
    stub = tmp_path / "bin" / "gcloud"
    stub.parent.mkdir()
    record = f"""printf '%s\\0' "$@" > '{tmp_path}/words'"""
    stub.write_text(f"#!/bin/sh\n{record}\nexit ${{STATUS:-0}}\n")
    stub.chmod(0o755)
    return stub.parent


@pytest.mark.parametrize("action", ["create", "install", "run", "logs", "fetch", "delete"])
def test_a_dry_run_prints_commands_and_runs_none(action, gcloud, tmp_path):
    """Every line of a dry run is a command that a shell reads back; nothing is run or written."""
    before = set(tmp_path.rglob("*"))
    result = launch("--dry-run", action, path=gcloud, TMPDIR=str(tmp_path), **VM)
    assert (result.returncode, result.stderr) == (0, "")
    commands = [shlex.split(line) for line in ansi_c_quoting(result.stdout)]
    assert {command[0] for command in commands} <= {"gcloud", "git"}
    assert any("my tpu" in word for word in commands[-1])
    assert "--zone=europe-west4-a" in commands[-1]
    assert set(tmp_path.rglob("*")) == before


def ansi_c_quoting(text: str) -> list[str]:
    """Lines with bash's `$'…'` words, which shlex does not know, written in plain quotes."""
    script = 'while IFS= read -r line; do eval "set -- $line"; printf "%s\\0" "$@"; echo; done'
    out = subprocess.run(["bash", "-c", script], input=text, capture_output=True, text=True)
    return [shlex.join(line.split("\0")) for line in out.stdout.split("\0\n") if line]


def test_arguments_reach_the_training_command_unchanged(gcloud, tmp_path):
    """Words with spaces and quotes pass two shells, here and on the VM, as they are."""
    odd = '--config.workdir=runs/it\'s a "b" $HOME'
    result = launch("run", "--config.seed=3", odd, path=gcloud, CONFIG="configs/merge2.py", **VM)
    assert result.returncode == 0, result.stderr
    words = (tmp_path / "words").read_text().split("\0")[:-1]
    assert words[:5] == ["compute", "tpus", "tpu-vm", "ssh", "my tpu"]
    (remote,) = [word for word in words if word.startswith("--command=")]
    (line,) = [line for line in remote.splitlines() if line.startswith("nohup")]
    sent = shlex.split(line.split(">>")[0])
    assert sent[1:4] == [".venv/bin/python", "-m", "hiercls_jax.main"]
    assert sent[4:] == ["--config=configs/merge2.py", "--distributed", "--config.seed=3", odd]
    assert "--worker=all" in words


def test_local_runs_as_many_processes_and_fails_as_they_do(tmp_path):
    """Each process gets its own id and the same coordinator; status and SIGTERM are passed on."""
    log = tmp_path / "log"
    script = f"""for word; do last=$word; done; echo "$@" >> {log}; exit ${{last#*=}}"""
    command = ["bash", str(LOCAL), "3", "bash", "-c", script, "bash", "--flag=a b"]
    assert subprocess.run(command, timeout=60).returncode == 1
    started = sorted(line.split() for line in log.read_text().splitlines())
    ids = sorted(words[-1] for words in started)
    assert ids == [f"--process_id={i}" for i in range(3)]
    assert {" ".join(words[:3]) for words in started} == {"--flag=a b --distributed"}
    assert len({words[3] for words in started}) == 1
    waits = ["bash", str(LOCAL), "2", "bash", "-c", f"trap 'exit 143' TERM; echo up >> {log}.2; "
             "while :; do sleep 0.1; done"]  # fmt: skip
    process = subprocess.Popen(waits)
    up = Path(f"{log}.2")
    deadline = time.monotonic() + 60
    while not (up.exists() and up.read_text().count("up") == 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert subprocess.run(["bash", str(LOCAL), "0", "true"], capture_output=True).returncode == 2


def test_a_failing_command_fails_the_script(gcloud):
    """The cloud's exit status is the script's."""
    assert launch("create", path=gcloud, STATUS="7", **VM).returncode == 7


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["create"], {"ZONE": "z"}, "set TPU_NAME"),
        (["create"], {"TPU_NAME": "t"}, "set ZONE"),
        (["destroy"], VM, "unknown action 'destroy'; it is one of create, install"),
        (["logs", "now"], VM, "unexpected argument 'now' after logs"),
    ],
)
def test_what_is_missing_or_unknown_is_named(arguments, variables, message, gcloud, tmp_path):
    """A missing variable or a wrong word is one line on stderr, status 2, and runs nothing."""
    result = launch(*arguments, path=gcloud, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "words").exists()
