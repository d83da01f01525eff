"""Measure time and memory of functions and of whole processes, for bench.py."""
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from threadpoolctl import threadpool_info

from machine.errors import UserError
from machine.sources import versions_of
from machine.threads import thread_count


class Clock:
    """``clock("read", work)`` calls ``work()`` and keeps the shortest time for the name, in s."""

    def __init__(self):
        self.seconds = {}

    def __call__(self, name, work):
        begun = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - begun
        self.seconds[name] = min(self.seconds.get(name, seconds), seconds)
        return result


def process(*command, cwd, **environment):
    """Run a Python script as a process; returns its seconds, processor seconds and peak memory.

    Processor seconds are the sum over all threads. Memory is in GB.
    """
    begun, peak, processor = time.perf_counter(), 0, 0
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    with tempfile.TemporaryFile() as said:  # a pipe would be full at some time
        child = psutil.Popen([sys.executable, *map(str, command)], cwd=cwd, stdout=said,
                             stderr=subprocess.STDOUT, env=environment)
        while child.poll() is None:
            try:
                memory, processor = child.memory_info(), sum(child.cpu_times()[:2])
                # Windows records the peak itself; elsewhere the memory is sampled often.
                peak = max(peak, getattr(memory, "peak_wset", memory.rss))
            except psutil.Error:
                break
            time.sleep(0.005)
        if child.wait():
            said.seek(0)
            raise UserError(f"{command[0]} failed: {said.read().decode(errors='replace')}")
    return {"seconds": round(time.perf_counter() - begun, 3),
            "processor_seconds": round(processor, 3), "peak_gb": round(peak / 1e9, 3)}


def medians(runs):
    """Median, smallest and largest seconds of every step at each size, and the amounts of work.

    Parameters
    ----------
    runs : list of dict of str to dict
        For each run, a dict by size: seconds (float) and amounts of work (int) by name.
    """
    found = {}
    for size, first in runs[0].items():
        found[size] = {}
        for name, value in first.items():
            values = [run[size][name] for run in runs]
            found[size][name] = value if isinstance(value, int) else {
                "median": round(statistics.median(values), 5), "least": round(min(values), 5),
                "most": round(max(values), 5)}
    return found


def machine(packages):
    """Description of this machine: processor, threads and versions."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.exists() else []
    blas = {f"{pool['internal_api']} {pool['version']} ({pool['num_threads']} threads)"
            for pool in threadpool_info() if pool["user_api"] == "blas"}
    return {"processor": names[0] if names else platform.processor() or platform.machine(),
            "cores": os.cpu_count(), "threads": thread_count(), "system": platform.system(),
            "python": platform.python_version(), "blas": sorted(blas),
            **versions_of(packages)}
