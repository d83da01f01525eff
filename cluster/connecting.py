"""Connect a command to a Dask scheduler: one that runs already, or one started for local processes.

Dask runs any code from anyone who can connect. Therefore the connections of local processes are
encrypted. Their certificates are made for the run and kept in memory, so that no other user of the
machine can read them.
"""
import contextlib
import importlib.util
import logging
import os
import re
import signal

import dask
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.security import Security

from machine.errors import UserError, first_line, quiet_libraries
from machine.threads import thread_count

PATIENCE = 30  # seconds to wait for a scheduler, as Dask does
# This setting, Dask's default, makes workers return freed memory to the system.
FREEING = {"MALLOC_TRIM_THRESHOLD_": "65536"}


def connect(name, stack, tls=()):
    """Connect to the scheduler at an address, or to local processes; returns the client.

    Parameters
    ----------
    name : str
        Address of the scheduler, or local or local:N for local processes.
    stack : contextlib.ExitStack
        At its end it closes the client and the processes.
    tls : tuple of three str, optional
        Files of --tls: the certificate authority, this command's certificate and its key.

    Returns
    -------
    distributed.Client

    Raises
    ------
    UserError
        If no scheduler answers, or the certificates do not match.
    """
    if found := re.fullmatch(r"local(?::([1-9]\d{0,3}))?", name):
        return _processes_here(int(found[1] or thread_count()), stack)
    if name.startswith("local:"):
        raise UserError(f"argument --scheduler: {name} has no number of processes from 1 to 9999; "
                        "give one, for example local:2")
    security = _security_of(name, tls)
    try:
        # With direct connections, sums and report pages do not pass through the scheduler.
        return stack.enter_context(Client(name, timeout=PATIENCE, direct_to_workers=True,
                                          security=security))
    except (OSError, ValueError) as fault:  # TimeoutError is an OSError
        remedy = "give its own files to --tls" if security else (
            "start one with: dask scheduler, or give local:2; one with TLS needs an address "
            "tls://... and --tls")
        raise UserError(f"argument --scheduler: no Dask scheduler answers at {name}"
                        f"{' with these certificates' * bool(security)}; {remedy}") from fault


def _processes_here(count, stack):
    """Start `count` local processes that no other user can connect to; returns the client."""
    variables = FREEING | dict.fromkeys(
        ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
        str(max(thread_count() // count, 1)))
    try:
        security = Security.temporary()
    except ImportError as fault:
        raise UserError("argument --scheduler: local needs the package cryptography, to keep other "
                        "users out; install it: python -m pip install -r "
                        "requirements-cluster.txt") from fault
    # By default, Dask would set variables in the command itself, and limit it to one thread.
    dask.config.set({"distributed.nanny.pre-spawn-environ": {}})
    with _environment(variables):
        cluster = stack.enter_context(LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, env=variables,
            security=security, silence_logs=logging.CRITICAL, dashboard_address="127.0.0.1:0"))
    if not has_dashboard():
        cluster.loop.add_callback(cluster.scheduler.http_server.stop)
    client = stack.enter_context(Client(cluster, direct_to_workers=True))
    client.register_plugin(_OfTheCommand())
    return client


def has_dashboard():
    """True if Dask can show its dashboard, a page that any user of the machine can open."""
    return importlib.util.find_spec("bokeh") is not None


def _security_of(name, tls):
    """The certificates for a scheduler (Dask's Security); None if its address is not tls://."""
    if not name.startswith("tls://"):
        return None
    ours = dict(zip(("tls_ca_file", "tls_client_cert", "tls_client_key"), tls, strict=False))
    security = Security(require_encryption=True, **ours)  # default: Dask's own files
    if not (security.tls_ca_file and security.tls_client_cert):
        raise UserError(f"argument --scheduler: {name} asks for certificates; give --tls CA CERT "
                        "KEY")
    try:
        security.get_connection_args("client")
    except (OSError, ValueError) as fault:  # SSLError is an OSError
        files = ", ".join(tls) or "the files that Dask is configured with"
        raise UserError(f"argument --tls: {files}: not a certificate authority, a certificate and "
                        f"its key in readable form ({first_line(fault)}); give files in PEM"
                        ) from fault
    return security


@contextlib.contextmanager
def _environment(variables):
    """A context that sets environment variables for new processes, and then restores the old ones.

    Numba, BLAS and malloc read the variables once, before a worker can set them.
    """
    own = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(own)


class _OfTheCommand(WorkerPlugin):
    """Plugin that makes local processes quiet, ignore Ctrl-C and close their web pages.

    A terminal sends Ctrl-C to all its processes, but only the command must react. The web pages of
    workers are not encrypted, and only the dashboard needs them.
    """

    def setup(self, worker):
        quiet_libraries()  # they would print into the command's terminal
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if not has_dashboard():
            worker.http_server.stop()
