"""Schedulers and workers as a user starts them, and workers to which something happens."""
import contextlib
import os
import socket
import subprocess
import sys

from synthetic import PATIENT, ROOT

# Dask's processes look at themselves many times a second, which takes time even when they wait.
os.environ.update({
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "10s"})

# Put before all else into a worker: what `happens` when it reads a volume called `when`; once only
# where a file of that name can be made.
HAPPENS = """
import os, signal, sys, time
class Prepared:
    def find_spec(self, name, *_):
        if name in ("cluster.sums", "restoring.whole_volume", "gpu.cards"):
            sys.meta_path.remove(self)
            import {module}.steps as module
            read = module.read_brain
            def read_brain(path, *more):
                if {when!r} in str(path):
                    {happens}
                return read(path, *more)
            module.read_brain = read_brain
sys.meta_path.insert(0, Prepared())
"""
# Dask tries a task on four workers, and each takes some seconds to start. Here it tries it on one,
# and on another one where the project asks for it again.
ONE_TRY = {"distributed.scheduler.allowed-failures": 0}
# Dask restarts no worker that dies while it starts: this one has begun by then.
DIES = "time.sleep(1); os._exit(1)"
ONCE = "\n                    ".join((
    "try: os.close(os.open({flag!r}, os.O_CREAT | os.O_EXCL))",
    "except FileExistsError: return read(path, *more)",
    "os.kill(os.getpid(), signal.SIGKILL)"))
# The second time, after it was surveyed: wait until a file `flag` is there.
HELD = "\n                    ".join((
    "try: os.close(os.open({flag!r} + ' read', os.O_CREAT | os.O_EXCL))",
    "except FileExistsError:",
    "    while not os.path.exists({flag!r}): time.sleep(0.05)"))


def prepared(folder, module, when, happens):
    """The environment of processes in which that happens."""
    text = HAPPENS.format(module=module, when=when, happens=happens)
    (folder / "sitecustomize.py").write_text(text)
    return dict(os.environ, PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")


def prepare_workers(monkeypatch, folder, module, when, happens):
    """The same in local processes that a command in this process starts, and not in this one."""
    monkeypatch.setenv("PYTHONPATH", prepared(folder, module, when, happens)["PYTHONPATH"])


@contextlib.contextmanager
def local_processes(count):
    """The client of the processes that commands start with local:N."""
    from cluster import connecting  # here, as below

    with contextlib.ExitStack() as stack:
        yield connecting._processes_here(count, stack)


@contextlib.contextmanager
def dask(folder, *workers, count=1, tls=None, scheduler_path=ROOT, **environment):
    """A scheduler, and workers with these options each; yields its address once all are there.

    `tls`: a file of a certificate and its key, by which they know each other. `scheduler_path`: the
    PYTHONPATH of the scheduler. `environment`: variables of the workers.
    """
    import distributed  # here: tests that need no cluster run without

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{'tls' if tls else 'tcp'}://127.0.0.1:{free.getsockname()[1]}"
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    of_scheduler = threads | {"PYTHONPATH": str(scheduler_path)}
    quiet = {"cwd": folder,
             "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    lines = [["dask_scheduler", "--host", address, "--dashboard-address", ":0"]]
    lines += count * [["dask_worker", address, "--nthreads", "1", *options] for options in workers]
    known = [f"--tls-{what}={tls}" for what in ("ca-file", "cert", "key") if tls]
    started = [subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{name}", *options, *known], **quiet,
        env=os.environ | (of_scheduler if name == "dask_scheduler" else threads | environment))
        for name, *options in lines]
    try:
        security = distributed.Security(**{f"tls_{name}": str(tls) for name in (
            "ca_file", "client_cert", "client_key")}, require_encryption=True) if tls else None
        with distributed.Client(address, timeout=PATIENT, security=security) as client:
            if workers:
                client.wait_for_workers(len(workers) * count, timeout=PATIENT)
        yield address
    finally:
        for process in started[::-1]:
            process.terminate()
        for process in started:
            process.wait(PATIENT)
