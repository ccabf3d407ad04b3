"""`small_run.py` without its imports: a process forked from one that has made them.

    FORKING_SERVER=… python forked_run.py --config=…

`small_run.py` imports JAX and the package for three seconds of a core, and then trains for four. So
a process of tests starts one server, which imports all that and uses no device. This program lets
the server fork a process, which takes over this one's arguments, environment, folder, stdin, stdout
and stderr, trains, and ends as any program does. This one stays, as what the test or a shell has
started: it passes SIGTERM and SIGINT on, and ends as the run ends, also by a signal. If it is
killed, the server kills the run.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

HERE = Path(__file__).absolute().parent
VARIABLE = "FORKING_SERVER"  # the server's socket
READ_ONCE = ("JAX_", "XLA_", "OPENBLAS_")  # variables that libraries read when they are imported
LONGEST = 2**18  # bytes of a command and its environment


@functools.cache
def server() -> str:
    """Start the server of this process, which ends with it; return the path of its socket."""
    folder = tempfile.TemporaryDirectory(prefix="forking-")
    path = f"{folder.name}/socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys, forked_run; forked_run.serve(int(sys.argv[1]))",
             str(listener.fileno())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE)))},
            stdin=subprocess.PIPE, pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C in a terminal does not reach it
        )  # fmt: skip

    @atexit.register
    def end() -> None:
        process.stdin.close()
        process.wait()
        folder.cleanup()

    return path


def serve(listener: int) -> None:
    """Run every command that comes in a fork of this process, until stdin is closed."""
    import small_run

    import hiercls_jax.data.folder  # noqa: F401  the command imports it only when it needs it

    gc.collect()
    gc.freeze()  # a run's collections would copy every page of these objects
    if _forked_for_a_command(socket.socket(fileno=listener)):
        sys.exit(small_run.main(sys.argv))


def _forked_for_a_command(listener: socket.socket) -> bool:
    """Fork and return True in a new process for each command, False here at the end."""
    runs: dict[int, tuple[int, socket.socket]] = {}  # pidfd of a run: its pid, and its client
    while True:
        clients = [client for _, client in runs.values()]
        ready, _, _ = select.select([0, listener, *runs, *clients], [], [])
        if 0 in ready:
            for pid, _ in runs.values():
                os.kill(pid, signal.SIGKILL)
            return False
        for pidfd, (pid, client) in list(runs.items()):
            if pidfd in ready:
                _, status = os.waitpid(pid, 0)
                _tell(client, os.waitstatus_to_exitcode(status))
                client.close()
                os.close(pidfd)
                del runs[pidfd]
            elif client in ready:  # it says nothing, so it has ended
                os.kill(pid, signal.SIGKILL)
        if listener in ready:
            client, _ = listener.accept()
            request, files, _, _ = socket.recv_fds(client, LONGEST, 3)
            pid = fork()
            if not pid:
                for held in (listener, client, *clients):
                    held.close()
                for pidfd in runs:
                    os.close(pidfd)
                _become(**json.loads(request), files=files)
                return True
            for file in files:
                os.close(file)
            _tell(client, pid)
            runs[os.pidfd_open(pid)] = pid, client


def _tell(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the client may have been killed
        client.send(b"%d" % number)


def fork() -> int:
    """Fork this process, which has one thread: a lock of another would stay locked in the fork."""
    assert len(os.listdir("/proc/self/task")) == 1
    with warnings.catch_warnings():  # JAX warns of forks because it usually has threads
        warnings.simplefilter("ignore")
        return os.fork()


def _become(argv: list[str], environment: dict, folder: str, client: int, files: list[int]) -> None:
    """Make this process what the client would be, had it imported all modules."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    Path("/proc/self/comm").write_text(_title(client))
    read, wanted = (
        {name: value for name, value in variables.items() if name.startswith(READ_ONCE)}
        for variables in (os.environ, environment)
    )
    if read != wanted:
        sys.exit(f"error: the server was started with {read}, this run needs {wanted}")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = argv


def _title(client: int) -> str:
    return f"run of {client}"  # 15 characters at most


def pid_of_run(pid: int) -> int:
    """Return the pid of the run that the server forked for this process; without one, its own."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if path.read_text().strip() == _title(pid):
                return int(path.parent.name)
    return pid


def main() -> None:
    """Let the server run this command, and end as the run ends."""
    request = {
        "argv": sys.argv, "environment": dict(os.environ), "folder": os.getcwd(),
        "client": os.getpid(),
    }  # fmt: skip
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(os.environ[VARIABLE])
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        run = int(connection.recv(32))
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda signum, _: _pass_on(run, signum))
        status = int(connection.recv(32))
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def _pass_on(run: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(run, signum)


if __name__ == "__main__":
    main()
