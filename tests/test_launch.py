"""The launch scripts: the commands they print and run, and what they refuse."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import fake_gcloud
import pytest
import small
import yaml

from hiercls_jax.data import arrays

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "launch" / "tpu_pod.sh"
LOCAL = ROOT / "launch" / "local.sh"
SLURM = ROOT / "launch" / "slurm.sbatch"
ONE_GPU = ROOT / "launch" / "one_gpu.sh"
JOBSET = ROOT / "launch" / "kubernetes" / "jobset.yaml"
# The fields of jobset.x-k8s.io/v1alpha2, batch/v1 and core/v1 that it uses, by path. An API server
# refuses other fields, or drops them silently.
JOBSET_FIELDS = {
    "": "apiVersion kind metadata spec",
    "metadata": "name",
    "spec": "network failurePolicy replicatedJobs",
    "spec.network": "enableDNSHostnames subdomain publishNotReadyAddresses",
    "spec.failurePolicy": "maxRestarts rules",
    "spec.failurePolicy.rules": "action onJobFailureReasons",
    "spec.replicatedJobs": "name replicas template",
    "JOB": "spec",
    "JOB.spec": "completionMode completions parallelism backoffLimit podFailurePolicy template",
    "JOB.spec.podFailurePolicy": "rules",
    "JOB.spec.podFailurePolicy.rules": "action onExitCodes",
    "JOB.spec.podFailurePolicy.rules.onExitCodes": "containerName operator values",
    "POD": "spec",
    "POD.spec": "restartPolicy terminationGracePeriodSeconds containers volumes",
    "POD.spec.volumes": "name persistentVolumeClaim",
    "POD.spec.volumes.persistentVolumeClaim": "claimName",
    "POD.spec.containers": "name image workingDir command env ports resources volumeMounts",
    "POD.spec.containers.env": "name value valueFrom",
    "POD.spec.containers.env.valueFrom": "fieldRef",
    "POD.spec.containers.env.valueFrom.fieldRef": "fieldPath",
    "POD.spec.containers.ports": "containerPort",
    "POD.spec.containers.resources": "limits",
    "POD.spec.containers.resources.limits": "nvidia.com/gpu",
    "POD.spec.containers.volumeMounts": "name mountPath",
}
VARIABLES = (
    "TPU_NAME", "ZONE", "PROJECT", "ACCELERATOR_TYPE", "RUNTIME_VERSION", "CONFIG", "SPOT",
    "MAX_RESTARTS",
)  # fmt: skip
VM = {"TPU_NAME": "my tpu", "ZONE": "europe-west4-a"}


def launch(*arguments, path=None, **variables):
    """Run the script with only these cloud variables."""
    kept = {k: v for k, v in os.environ.items() if k not in VARIABLES}
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


ACTIONS = ["train", "create", "wait", "install", "upload", "run", "logs", "fetch", "delete"]


@pytest.mark.parametrize("action", ACTIONS)
def test_a_dry_run_prints_commands_and_runs_none(action, gcloud, tmp_path):
    """Every line of a dry run is a command that a shell reads back; nothing is run or written."""
    before = set(tmp_path.rglob("*"))
    result = launch("--dry-run", action, path=gcloud, TMPDIR=str(tmp_path), PROJECT="mine", **VM)
    assert (result.returncode, result.stderr) == (0, "")
    commands = [shlex.split(line) for line in ansi_c_quoting(result.stdout)]
    assert {command[0] for command in commands} <= {"gcloud", "git", "mkdir", "mv", "tar"}
    for command in commands:
        if command[0] == "gcloud":
            assert any("my tpu" in word for word in command) or "list" in command
            assert {"--zone=europe-west4-a", "--project=mine"} <= set(command)
    if action == "train":
        assert commands[-1][:5] == ["gcloud", "compute", "tpus", "queued-resources", "delete"]
    assert set(tmp_path.rglob("*")) == before
    assert not (ROOT / "runs" / "my tpu.tar.gz.part").exists()


def ansi_c_quoting(text: str) -> list[str]:
    """Lines with bash's `$'…'` words, which shlex does not know, written in plain quotes."""
    script = 'while IFS= read -r line; do eval "set -- $line"; printf "%s\\0" "$@"; echo; done'
    out = subprocess.run(["bash", "-c", script], input=text, capture_output=True, text=True)
    return [shlex.join(line.split("\0")) for line in out.stdout.split("\0\n") if line]


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        (None, "tpu-ubuntu2204-base"),
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v4-16", "tpu-ubuntu2204-base"),
        ("v5litepod-64", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_a_slice_gets_the_software_of_its_type(accelerator, runtime, gcloud, tmp_path):
    """By default it is Google's version for the type; RUNTIME_VERSION is taken as it is."""
    chosen = {"ACCELERATOR_TYPE": accelerator} if accelerator else {}
    for more in ({}, {"RUNTIME_VERSION": "my version"}):
        result = launch("create", path=gcloud, **chosen, **more, **VM)
        assert (result.returncode, result.stderr) == (0, "")
        words = (tmp_path / "words").read_text().split("\0")[:-1]
        assert words.count(f"--accelerator-type={accelerator or 'v3-8'}") == 1
        assert words.count(f"--runtime-version={more.get('RUNTIME_VERSION', runtime)}") == 1
        assert not [word for word in words if word.startswith("--project")]


def test_arguments_reach_the_training_command_unchanged(gcloud, tmp_path):
    """Words with spaces and quotes pass two shells unchanged, here and on the VM."""
    odd = '--config.workdir=runs/it\'s a "b" $HOME'
    result = launch("run", "--config.seed=3", odd, path=gcloud, CONFIG="configs/merge2.py", **VM)
    assert result.returncode == 0, result.stderr
    words = (tmp_path / "words").read_text().split("\0")[:-1]
    assert words[:5] == ["compute", "tpus", "tpu-vm", "ssh", "my tpu"]
    (remote,) = [word for word in words if word.startswith("--command=")]
    (line,) = [line for line in remote.splitlines() if line.startswith("nohup")]
    sent = shlex.split(line.split(">>")[0])
    assert sent[:5] == ["nohup", "sh", "-c", "$watched", "sh"]
    assert sent[5:8] == [".venv/bin/python", "-m", "hiercls_jax.main"]
    assert sent[8:] == ["--config=configs/merge2.py", "--distributed", "--config.seed=3", odd]
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
        (["train"], {"ZONE": "z"}, "set TPU_NAME"),
        (["train"], {**VM, "MAX_RESTARTS": "many"}, "MAX_RESTARTS is a whole number, not 'many'"),
        (["train"], {**VM, "FOLLOW_SECONDS": "0"}, "FOLLOW_SECONDS is above 0, not 0"),
        (["create"], {**VM, "SPOT": "yes"}, "SPOT is 1 for a preemptible slice or 0, not 'yes'"),
        (["create"], {"TPU_NAME": "t"}, "set ZONE"),
        (
            ["create"],
            {**VM, "ACCELERATOR_TYPE": "v5e-8"},
            "set RUNTIME_VERSION, the TPU software version for ACCELERATOR_TYPE 'v5e-8'",
        ),
        (["train"], {**VM, "ACCELERATOR_TYPE": "v3"}, "set RUNTIME_VERSION"),
        (["destroy"], VM, "unknown action 'destroy'; it is one of train, create"),
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


class Cloud:
    """A project with the script in it, and a cloud that follows a plan; see fake_gcloud."""

    def __init__(self, root: Path):
        self.root, self.project = root, root / "a project"
        shutil.copytree(ROOT / "launch", self.project / "launch")
        for name, content in {
            "gcloud": f'#!/bin/sh\nexec {sys.executable} -S {fake_gcloud.__file__} "$@"\n',
            "git": "#!/bin/bash\nfor w; do case $w in --output=*) "
            'exec tar -czf "${w#--output=}" -C / --files-from=/dev/null;; esac; done\n',
        }.items():
            self._write(root / "bin" / name, content)
        for name, content in fake_gcloud.COMMANDS.items():
            self._write(root / "commands" / name, content)

    @staticmethod
    def _write(path: Path, content: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)

    def train(self, *arguments: str, plan: dict, **variables: str) -> subprocess.Popen:
        """Start `tpu_pod.sh train`, as a terminal would: in a process group of its own."""
        (self.root / "plan.json").write_text(json.dumps(plan))
        kept = {k: v for k, v in os.environ.items() if k not in VARIABLES}
        environment = kept | VM | {"POLL_SECONDS": "0", "FOLLOW_SECONDS": "1"} | variables
        environment |= {"CLOUD": str(self.root), "PATH": f"{self.root / 'bin'}:{kept['PATH']}"}
        environment |= {"TMPDIR": str(self.root / "tmp")}
        (self.root / "tmp").mkdir(exist_ok=True)
        return subprocess.Popen(
            ["bash", str(self.project / "launch" / "tpu_pod.sh"), "train", *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str, plan: dict, **variables: str) -> tuple[int, str, str]:
        """Return status, stdout and stderr of `tpu_pod.sh train`."""
        process = self.train(*arguments, plan=plan, **variables)
        out, error = process.communicate(timeout=120)
        return process.returncode, out, error

    def calls(self) -> list[list[str]]:
        """Every call of gcloud, without `compute tpus`."""
        path = self.root / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)[2:] for line in lines]

    def verbs(self, *wanted: str) -> list[str]:
        """The verbs of all calls in order, those of `wanted` alone."""
        return [call[1] for call in self.calls() if call[1] in wanted]

    def fetched(self) -> list[str]:
        """The training's count when it was last fetched."""
        with tarfile.open(self.project / "runs" / "my tpu.tar.gz") as archive:
            return archive.extractfile("runs/count").read().decode().split()


@pytest.fixture
def cloud(tmp_path):
    """A fake cloud; all that still runs on it at the end is killed."""
    yield Cloud(tmp_path)
    fake_gcloud.lose(tmp_path)


def test_a_preempted_slice_is_recreated_and_goes_on_from_what_was_fetched(cloud):
    """Two slices are lost, the third finishes what the first began; each is deleted once."""
    plan = {"lives": ["preempt", "never", "finish"]}
    status, out, error = cloud.run("--config.workdir=runs/my run", plan=plan, SPOT="1")
    assert status == 0, error
    assert cloud.verbs("create", "delete") == ["create", "delete"] * 3
    assert cloud.fetched() == ["start"] * 2
    assert (cloud.project / "runs" / "count").read_text().split() == ["start"] * 2
    assert "restart 2 of at most 10" in error
    assert "argument: --config.workdir=runs/my run" in out.splitlines()
    create, delete = (
        next(call for call in cloud.calls() if call[1] == verb) for verb in ("create", "delete")
    )
    assert create[:4] == ["queued-resources", "create", "my tpu", "--node-id=my tpu"]
    assert "--spot" in create
    assert delete[:3] == ["queued-resources", "delete", "my tpu"]
    assert {"--force", "--quiet"} <= set(delete)
    assert not list((cloud.root / "tmp").iterdir())


def test_the_log_is_shown_once(cloud):
    """The first host's log is printed once, although it is asked for again and again."""
    status, out, error = cloud.run(plan={"lives": ["preempt", "finish"], "fetches": 2})
    assert status == 0, error
    assert out.splitlines().count("argument: --distributed") == 2  # one a start


def test_a_training_whose_hosts_were_restarted_goes_on_on_a_new_slice(cloud):
    """After 143, no status at all, 134 or 137, the runs are fetched and go on.

    The slice stays ACTIVE; JAX ends host 0 with 134 if another host is gone.
    """
    status, _, error = cloud.run(plan={"lives": ["told", "crash", "half", "killed", "finish"]})
    assert status == 0, error
    assert cloud.fetched() == ["start"] * 5
    assert re.findall(r"restart (\d) of", error) == ["1", "2", "3", "4"]
    ends = re.findall(r"the training ended with status (\d+); the end of every host's log:", error)
    assert ends == ["134", "137"]


def test_a_training_that_is_gone_before_it_began_is_not_waited_for(cloud):
    """If there is no process of the training, it has vanished, and a new slice starts another."""
    status, _, error = cloud.run(plan={"lives": ["stillborn", "finish"]})
    assert status == 0, error
    assert cloud.verbs("create", "delete") == ["create", "delete"] * 2
    assert cloud.fetched() == ["start"]


def test_what_fails_for_a_while_is_tried_again(cloud):
    """A slice that is reachable only later, or a connection that breaks, costs no slice."""
    status, _, error = cloud.run(plan={"lives": ["flaky"], "unready": 2, "outage": 5})
    assert status == 0, error
    assert "attempt 2 of 3 to install failed with status 255" in error
    assert cloud.verbs("create", "delete") == ["create", "delete"]


def test_a_training_that_not_all_hosts_have_started_is_started_once_on_each(cloud):
    """If starting reached one host alone, it is repeated, and that host does not start twice."""
    status, out, error = cloud.run(plan={"lives": ["finish"], "unstarted": 2})
    assert status == 0, error
    assert "attempt 2 of 3 to start failed with status 255" in error
    assert "to install failed" not in error  # though apt's locks were held at first
    assert out.count("it runs already") == 2
    assert cloud.verbs("create", "delete") == ["create", "delete"]
    assert cloud.fetched() == ["start"]


def test_the_number_of_restarts_is_limited(cloud):
    """After MAX_RESTARTS it is an error that names the limit; nothing stays behind."""
    status, _, error = cloud.run(plan={"lives": ["preempt"] * 4}, MAX_RESTARTS="1")
    assert status == 1
    assert "the slice was lost 2 times, and MAX_RESTARTS is 1" in error
    assert cloud.verbs("create", "delete") == ["create", "delete"] * 2
    assert not (cloud.root / "state").exists()


@pytest.mark.parametrize(
    ("plan", "status", "says"),
    [
        ({"lives": ["refused"]}, 1, "my tpu is FAILED"),
        ({"lives": ["finish"], "unready": 3}, 255, "attempt 3 of 3 to install failed"),
        ({"lives": ["flaky"], "outage": 99}, 1, "could not be reached 10 times in a row"),
        ({"lives": ["fail"]}, 1, "the training ended with status 1"),
    ],
)
def test_what_fails_is_deleted(cloud, plan, status, says):
    """A failing request or training gives its status; the queued resource is deleted after it."""
    found, out, error = cloud.run(plan=plan)
    assert found == status
    assert says in error
    assert cloud.verbs("create", "delete") == ["create", "delete"]
    if plan["lives"] == ["fail"]:
        assert out.count("error: no such thing") == 3  # followed once, then the end of each host's
        assert cloud.fetched() == ["start"]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_saves_fetches_and_deletes(cloud, signum, status):
    """SIGINT to the group, or SIGTERM to the script alone, ends in a saved run and no slice."""
    process = cloud.train(plan={"lives": ["forever"]}, FOLLOW_SECONDS="600")
    for line in process.stdout:
        if line.startswith("argument"):
            break
    began = time.monotonic()
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert time.monotonic() - began < 30  # not the 600 s that it would have followed
    assert cloud.fetched() == ["start", "stopped"]
    assert cloud.verbs("create", "delete") == ["create", "delete"]
    assert not (cloud.root / "state").exists()


def test_a_slice_of_somebody_else_is_not_touched(cloud):
    """If the name is taken, nothing is created, and above all nothing deleted."""
    status, _, error = cloud.run(plan={"lives": [], "others": ["my", "my tpu"]})
    assert status == 2
    assert error.startswith("error: there is a queued resource my tpu already")
    assert {call[1] for call in cloud.calls()} == {"list"}


@pytest.mark.parametrize("lives", [[], ["finish"]])
def test_what_could_not_be_created_is_deleted_only_if_it_is_there(cloud, lives):
    """No slice is left to cost money, and no note names one that does not exist."""
    status, _, error = cloud.run(plan={"create": 7, "lives": lives})
    assert status == 7
    assert cloud.verbs("create", "delete") == ["create"] + ["delete"] * len(lives)
    assert not (cloud.root / "state").exists()
    assert "costs money" not in error


def test_a_slice_that_somebody_else_has_deleted_is_not_said_to_cost_money(cloud):
    """The training is lost, which is an error; to delete a slice that is gone is none."""
    status, _, error = cloud.run(plan={"lives": ["removed"]})
    assert status == 1
    assert "could not be reached 10 times in a row" in error
    assert cloud.verbs("create", "delete") == ["create", "delete"]
    assert "costs money" not in error


def test_a_slice_that_could_not_be_deleted_is_named(cloud):
    """It still costs money, so this is an error even after a training that went well."""
    status, _, error = cloud.run(plan={"lives": ["finish"], "delete": 9, "others": ["my", "tpu"]})
    assert status == 1
    assert "my tpu could not be deleted and costs money until it is" in error


def test_local_says_which_process_failed_and_prints_what_it_would_run(tmp_path):
    """The number of a process that failed and its status are named; a dry run starts nothing."""
    fail = ["bash", "-c", f"touch '{tmp_path}/ran'; [[ $* != *=1 ]] || exit 3", "bash"]
    result = subprocess.run(["bash", str(LOCAL), "2", *fail], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (3, "local.sh: process 1 ended with status 3\n")
    (tmp_path / "ran").unlink()
    dry = subprocess.run(
        ["bash", str(LOCAL), "--dry-run", "2", "a b", "c"], capture_output=True, text=True
    )
    commands = [shlex.split(line) for line in dry.stdout.splitlines()]
    assert [command[:3] for command in commands] == [["a b", "c", "--distributed"]] * 2
    assert [command[-1] for command in commands] == ["--process_id=0", "--process_id=1"]
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def slurm(tmp_path):
    """Run slurm.sbatch as Slurm runs a job, against stubs that record their arguments."""
    fails = (  # $1 times in all
        f"count=$(wc -l < '{tmp_path}/fails.%s' 2> /dev/null || echo 0)\n"
        f"if ((count < %s)); then echo >> '{tmp_path}/fails.%s'; echo '%s' >&2; exit 1; fi\n"
    )
    unknown = "slurm_load_jobs error: Invalid job id specified"
    stubs = {
        "srun": "exit ${STATUS:-0}",
        "squeue": fails % ("q", "${UNKNOWN:-0}", "q", unknown) + "echo ${STATE-RUNNING}",
        "scontrol": fails % ("c", "${BUSY:-0}", "c", "Unable to contact slurm controller"),
        "sleep": "",
        "a python": "",
    }
    for name, ends in stubs.items():
        path = tmp_path / name
        path.write_text(
            f"#!/bin/bash\nprintf '%s\\0' {name.split()[0]} \"$@\" >> '{tmp_path}/words'\n"
            f"echo >> '{tmp_path}/words'\n{ends}\n"
        )
        path.chmod(0o755)

    def run(*arguments, **variables):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        environment = kept | {"SLURM_JOB_ID": "41", "PYTHON": str(tmp_path / "a python")}
        environment |= {"PATH": f"{tmp_path}:{kept['PATH']}"} | variables
        environment = {k: v for k, v in environment.items() if v is not None}
        result = subprocess.run(
            ["bash", str(SLURM), *arguments],
            env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        words = tmp_path / "words"
        lines = words.read_text().split("\0\n")[:-1] if words.exists() else []
        return result, [line.split("\0") for line in lines]

    return run


def test_slurm_starts_the_training_with_its_arguments(slurm, tmp_path):
    """`srun` gets python, the config and every argument as it was; success ends the job."""
    odd = '--config.workdir=a "b" $HOME'
    result, calls = slurm(odd, CONFIG="configs/merge2.py", SLURM_CPUS_PER_TASK="4")
    assert (result.returncode, result.stderr) == (0, "")
    ((*srun, python, m, module, config, distributed, last),) = calls
    assert srun == ["srun", "--kill-on-bad-exit=0", "--wait=0", "--cpus-per-task=4"]
    assert [python, m, module] == [str(tmp_path / "a python"), "-m", "hiercls_jax.main"]
    assert [config, distributed, last] == ["--config=configs/merge2.py", "--distributed", odd]


@pytest.mark.parametrize(
    ("variables", "requeued", "says"),
    [
        ({"STATUS": "143"}, True, ""),
        ({"STATUS": "143", "SLURM_RESTART_COUNT": "19"}, True, ""),
        ({"STATUS": "143", "SLURM_RESTART_COUNT": "20"}, False, "MAX_RESTARTS is 20"),
        ({"STATUS": "143", "STATE": "COMPLETING"}, False, "the job is COMPLETING"),
        ({"STATUS": "143", "STATE": ""}, False, "the job is gone"),
        ({"STATUS": "143", "UNKNOWN": "3"}, True, ""),
        ({"STATUS": "143", "UNKNOWN": "4"}, False, "squeue does not say whether the job is"),
        ({"STATUS": "143", "BUSY": "3"}, True, ""),
        ({"STATUS": "143", "BUSY": "4"}, True, "could not be put back"),
        ({"STATUS": "1"}, False, ""),
        ({"STATUS": "137"}, False, ""),
        ({"STATUS": "0"}, False, ""),
    ],
)
def test_slurm_puts_back_what_was_stopped_and_nothing_else(slurm, variables, requeued, says):
    """Only a job that was asked to stop, and saved, goes back into the queue, and not for ever."""
    result, calls = slurm(**variables)
    assert result.returncode == int(variables["STATUS"])
    assert (["scontrol", "requeue", "41"] in calls) == requeued
    assert says in result.stderr
    assert result.stderr.count("slurm.sbatch: stopped and saved; ") == bool(says)


def test_slurm_names_what_is_missing_and_prints_what_it_would_run(slurm):
    """Outside of a job, without a python, or with a wrong number: one line, and nothing runs."""
    for variables, message in [
        ({"SLURM_JOB_ID": None}, "SLURM_JOB_ID is not set: submit this by sbatch"),
        ({"PYTHON": "no/python"}, "there is no no/python in "),
        ({"MAX_RESTARTS": "-1"}, "MAX_RESTARTS is a whole number, not '-1'"),
    ]:
        result, calls = slurm(**variables)
        assert (result.returncode, calls) == (2, [])
        assert result.stderr.startswith(f"error: {message}")
        assert result.stderr.count("\n") == 1
    result, calls = slurm("--dry-run", "--config.workdir=a b", SLURM_JOB_ID=None)
    assert (result.returncode, calls) == (0, [])
    words = shlex.split(result.stdout)
    assert (words[0], words[-1]) == ("srun", "--config.workdir=a b")


def test_slurm_asks_for_what_stopping_and_resuming_needs():
    """The job gets SIGTERM in time, may be requeued, keeps its log, and has a task for each GPU."""
    lines = SLURM.read_text().split("set -euo pipefail")[0].splitlines()
    words = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in lines
        if line.startswith("#SBATCH --")
    )
    assert words["signal"] == "TERM@300"  # without B: to the tasks, not to this script
    assert "requeue" in words
    assert words["open-mode"] == "append"
    assert words["ntasks-per-node"] == words["gpus-per-node"]
    assert all(line.startswith("#") or not line for line in lines)  # else Slurm stops reading


def test_the_jobset_gives_each_pod_its_place_and_time_to_save():
    """One coordinator that DNS knows, as many pods as processes, restarts of all, and signals."""
    jobset = yaml.safe_load(JOBSET.read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    (group,) = spec["replicatedJobs"]
    job = group["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    flags = dict(
        word.removeprefix("--").partition("=")[::2]
        for word in container["command"]
        if word.startswith("--")
    )
    assert container["command"][:3] == ["python", "-m", "hiercls_jax.main"]  # no shell: signals
    assert "distributed" in flags
    assert job["completionMode"] == "Indexed"
    assert group["replicas"] == 1
    assert job["completions"] == job["parallelism"] == int(flags["processes"])
    host, port = flags["coordinator"].split(":")
    assert spec["network"]["enableDNSHostnames"]
    first = f"{jobset['metadata']['name']}-{group['name']}-0-0"
    assert host == f"{first}.{spec['network']['subdomain']}"
    assert int(port) in [p["containerPort"] for p in container["ports"]]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert flags["process_id"] == "$(PROCESS_ID)"
    path = environment["PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert (pod["restartPolicy"], job["backoffLimit"]) == ("Never", 0)
    assert spec["failurePolicy"]["maxRestarts"] > 0
    assert pod["terminationGracePeriodSeconds"] >= 120
    (rule,) = job["podFailurePolicy"]["rules"]  # 143 and 1 are restarted, a wrong command is not
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In",
                                   "values": [2]}  # fmt: skip
    assert spec["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    (mount,) = container["volumeMounts"]
    assert flags["config.workdir"].startswith(mount["mountPath"] + "/")
    assert mount["name"] in [volume["name"] for volume in pod["volumes"]]


def fields(node, path=""):
    """Yield (path, object) for every object of a JobSet; the path begins at its Job or pod."""
    path = {"spec.replicatedJobs.template": "JOB", "JOB.spec.template": "POD"}.get(path, path)
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from fields(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for item in node:
            yield from fields(item, path)


def test_the_jobset_is_what_the_api_takes():
    """Fields that exist, names that DNS allows, and numbers or strings as each field requires."""
    text = JOBSET.read_text()
    jobset = yaml.safe_load(text)
    found = dict(fields(jobset))
    assert found.keys() == JOBSET_FIELDS.keys()
    for path, node in fields(jobset):
        assert node.keys() <= set(JOBSET_FIELDS[path].split()), path
    spec = jobset["spec"]
    (group,) = spec["replicatedJobs"]
    job = group["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    names = [jobset["metadata"]["name"], group["name"], spec["network"]["subdomain"]]
    names += [container["name"], job["template"]["spec"]["volumes"][0]["name"]]
    assert all(re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", name) for name in names)
    pod = f"{jobset['metadata']['name']}-{group['name']}-0-{job['completions'] - 1}"
    assert len(f"{pod}-abcde") <= 63  # the pod's own name has five letters more than its host name
    assert f"jobset.sigs.k8s.io/jobset-name={jobset['metadata']['name']} " in text
    environment = container["env"]
    assert all(isinstance(entry.get("value", ""), str) for entry in environment)
    assert all(("value" in entry) != ("valueFrom" in entry) for entry in environment)
    assert len({entry["name"] for entry in environment}) == len(environment)
    assert spec["failurePolicy"]["rules"][0]["action"] in {
        "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts",
    }  # fmt: skip
    assert job["podFailurePolicy"]["rules"][0]["action"] in {"FailJob", "Ignore", "Count"}
    (marked,) = {re.search(r"(\d+),?  # hosts", line)[1] for line in text.splitlines()
                 if line.endswith("  # hosts")}  # fmt: skip
    assert (marked, text.count("  # hosts\n")) == (str(job["completions"]), 3)


@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")
def test_the_command_of_each_pod_is_one_that_the_training_takes(monkeypatch):
    """Every flag and config field exists; the pods are the processes of one cluster."""
    from hiercls_jax import experiment
    from hiercls_jax.commands import train

    monkeypatch.chdir(ROOT)
    (group,) = yaml.safe_load(JOBSET.read_text())["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    module, *words = container["command"][2:]
    for index in range(job["completions"]):
        sent = [word.replace("$(PROCESS_ID)", str(index)) for word in words]
        options = train._parse([module, *sent])
        experiment.check(options.config)
        cluster = train._cluster(options)
        assert (cluster.processes, cluster.process_id) == (job["completions"], index)
        port = container["ports"][0]["containerPort"]
        assert cluster.coordinator == f"hiercls-train-0-0.hiercls:{port}"


# One GPU.


def one_gpu(*arguments, **variables):
    """Run the script by this Python."""
    return subprocess.run(
        ["bash", str(ONE_GPU), *arguments],
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | variables,
        cwd="/", capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_one_gpu_s_dry_run_shows_what_each_part_runs(tmp_path):
    """The commands have the data's folder, and the shares of the minutes; nothing is written."""
    arrays.write(tmp_path, "train", small.split(8), 10**6)
    small.HIERARCHY.to_json(tmp_path / "hierarchy.json")
    shown = one_gpu("--dry_run", "--minutes=10", f"--data={tmp_path}", f"--out={tmp_path / 'out'}")
    assert (shown.stderr, shown.returncode) == ("", 0)
    checks, benchmarks, training = shown.stdout.split("# ")[1:]
    assert checks.startswith("checks: at most 180 s\n")
    assert "tests/test_layers.py" in checks
    assert "JAX_PLATFORMS=cuda,cpu" in checks
    assert "--only=precision" in benchmarks
    words = shlex.split(training.splitlines()[1])
    assert words[1:5] == ["-m", "hiercls_jax", "grid", "fast,dataset=arrays"]
    assert words[-2:] == [
        f"--config.data.dir={tmp_path}", f"--config.data.hierarchy={tmp_path / 'hierarchy.json'}"
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()
    for wrong, message in (("--minutes=0", "not from 1 to 1440"), ("--data=/none", "no folder")):
        refused = one_gpu("--dry_run", wrong)
        assert refused.returncode == 2
        assert message in refused.stderr.replace("is not a folder", "no folder")


@pytest.mark.one_gpu
def test_one_gpu_s_rehearsal_gives_every_result(tmp_path):
    """On a CPU in two minutes: checks pass, a step is timed in both types, a network is trained.

    Training is stopped when the time is over; what is finished by then is in the results.
    """
    done = one_gpu("--rehearsal", "--minutes=2", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    states = {name: part["state"] for name, part in results["parts"].items()}
    assert states == {
        "checks": "finished", "benchmarks": "finished", "training": "stopped when its time was over"
    }  # fmt: skip
    assert sum(part["seconds"] for part in results["parts"].values()) < 125
    assert results["checks"]["tests"] > 5
    assert results["checks"]["failed"] == []
    (row,) = results["benchmarks"]["rows"]
    assert set(row["median"]) == {"float32", "bfloat16"}
    assert {run["variant"] for run in results["runs"]} >= {"merge2"}
    assert all(0 < run["test_error"]["tuned"]["fine"] < 1 for run in results["runs"])


def test_one_gpu_says_what_failed(tmp_path):
    """A part that fails is in the results with its status, and the exit status is 1.

    What an earlier command left of that part is not taken for its result.
    """
    (tmp_path / "benchmarks.json").write_text("{}")
    (tmp_path / "checks.xml").write_text("<testsuite/>")
    code = (
        "import sys, time, pathlib; sys.path.insert(0, 'launch'); import one_gpu\n"
        "parts = [one_gpu.Part('checks', ['-c', 'raise SystemExit(3)'], 1.0),\n"
        "         one_gpu.Part('training', ['-c', 'import time; time.sleep(60)'], 0.02)]\n"
        f"out = pathlib.Path({str(tmp_path)!r})\n"
        "raise SystemExit(one_gpu.carry_out(parts, out, time.monotonic() + 60))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "one_gpu: checks: no result, or a failure; see its log" in done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["checks"], results["benchmarks"]) == (None, None)
    parts = results["parts"]
    assert parts["checks"]["state"] == "failed with status 3"
    assert parts["training"]["state"] == "stopped when its time was over"
    assert parts["training"]["seconds"] < 30
