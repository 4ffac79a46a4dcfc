"""The processes of one job: what each has, how they find each other, and what is said when one of them is lost.

Nothing here imports JAX before it is asked to join: the command `bygrad` reads this file first.
"""

import os
import re
import signal
import sys
from importlib.util import find_spec
from typing import Any

from . import cgroups

HEARTBEAT_SECONDS = 30
"""How long a process may be silent before the others give up. Heartbeats have a thread of their own, so that compiling
or computing does not silence them; JAX's own default is 100."""

INCOMPLETE = 75
"""Exit status of a job that lost a process: the system's EX_TEMPFAIL, "try again later"."""


class LostProcessError(ConnectionError):
    """Another process of the job ended or cannot be reached."""


def usable_cores() -> int:
    """Return how many cores this process may use, by its affinity and by the quotas of its control groups."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min([cores, *cgroups.cores()])


def parse_hosts(hosts: str) -> dict[str, Any]:
    """Return the arguments of `jax.distributed.initialize` for `auto` or `ADDRESS:PORT,COUNT,INDEX`."""
    if hosts == "auto":
        return {}
    if (match := re.fullmatch(r"(.+:\d+),(\d+),(\d+)", hosts)) is None or not int(match[3]) < int(match[2]):
        raise ValueError(
            f"--hosts is {hosts!r}, which names no place in a job. Write ADDRESS:PORT,COUNT,INDEX (where process 0"
            " listens, how many processes there are, and which one this is, from 0 to COUNT - 1), or auto under SLURM,"
            " Open MPI, Kubernetes or on a TPU pod."
        )
    return {"coordinator_address": match[1], "num_processes": int(match[2]), "process_id": int(match[3])}


_PLACES = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
"""Where Open MPI and SLURM say which process of how many this is, of those that they have started together; `mpirun` in
a job of SLURM knows better. SLURM_NTASKS will not do: the one process of a batch script, or of a shell of `salloc`, has
the count of the whole job there, and would wait for processes that nobody starts."""


def place_in_job(hosts: str | None) -> tuple[int, int]:
    """Return which process this is, from 0, of how many that share a folder and need not find each other.

    **Arguments:** `hosts`: None for a process alone, `auto`, or `COUNT,INDEX`, also as for `parse_hosts`.
    """
    if hosts is None:
        return 0, 1
    if hosts == "auto":
        for index, count in _PLACES:
            if index in os.environ and count in os.environ:
                return int(os.environ[index]), int(os.environ[count])
        raise ValueError(
            "--hosts is auto, but neither SLURM (srun) nor Open MPI (mpirun) has started this process, so it is not"
            " known which part of the work is its. Write --hosts COUNT,INDEX: how many processes there are, and which"
            " one this is, from 0 to COUNT - 1."
        )
    if (match := re.fullmatch(r"(?:.+:\d+,)?(\d+),(\d+)", hosts)) is None or not int(match[2]) < int(match[1]):
        raise ValueError(
            f"--hosts is {hosts!r}, which names no place in a job. Write COUNT,INDEX (how many processes there are, and"
            " which one this is, from 0 to COUNT - 1), or auto under SLURM or Open MPI."
        )
    return int(match[2]), int(match[1])


def refuse_to_repeat() -> None:
    """**Raises:** `ValueError` where this process is one of several that would all do the same."""
    count = int(next((os.environ[name] for _, name in _PLACES if name in os.environ), 1))
    if count > 1:
        raise ValueError(
            f"This is one of {count} processes that SLURM (srun) or Open MPI (mpirun) has started together, and without"
            " --hosts each would train the same. Let them share one meta-training: --hosts auto. If each is to train"
            " something of its own, in another folder: --hosts none."
        )


def join(hosts: str, timeout: int = 300) -> None:
    """Join the processes of a job, before JAX has computed anything.

    **Arguments:** `hosts`: as for `parse_hosts`. `timeout`: seconds to wait for the others.

    **Raises:** `ValueError`: `hosts` cannot be read, or `auto` finds nothing. `LostProcessError`: not all came.
    """
    arguments = parse_hosts(hosts)
    open_mpi_5 = hosts == "auto" and "OMPI_COMM_WORLD_RANK" in os.environ and "OMPI_MCA_orte_hnp_uri" not in os.environ
    if open_mpi_5 and find_spec("mpi4py"):  # JAX asks it only where it is told to, and knows older Open MPIs without
        count, index = (int(os.environ[f"OMPI_COMM_WORLD_{name}"]) for name in ("SIZE", "RANK"))
        arguments = {"cluster_detection_method": "mpi4py", "num_processes": count, "process_id": index}
    # JAX's preemption service would catch SIGTERM and do nothing that anybody here asks for.
    os.environ.setdefault("JAX_ENABLE_PREEMPTION_SERVICE", "0")
    import jax

    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=timeout, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except ValueError as error:
        remedy = (
            "Start it under SLURM, Open MPI, Kubernetes or on a TPU pod, or name the place: --hosts"
            " ADDRESS:PORT,COUNT,INDEX."
        )
        if open_mpi_5:
            remedy = (
                "JAX finds the processes of Open MPI 5 through mpi4py: install it (pip install mpi4py), or name the"
                " place of each: mpirun ... sh -c 'bygrad ... --hosts"
                " ADDRESS:PORT,$OMPI_COMM_WORLD_SIZE,$OMPI_COMM_WORLD_RANK'."
            )
        raise ValueError(
            f"--hosts {hosts} does not work here ({error}), so this process would train alone. {remedy}"
        ) from error
    except RuntimeError as error:
        raise LostProcessError(
            f"The processes of the job did not find each other within {timeout} s ({first_line(error)}), so nothing was"
            f" started. Check that all of them were started, that --hosts ({hosts}) gives them the same address and"
            " count and different indices, and that no firewall closes the port."
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error: the rest of a runtime's message is for its developers."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class LastWords:
    """Says on stderr what a death means, where the dying process cannot.

    When a process of a job is lost, JAX's runtime may end the others from a thread of its own, by `abort`: no Python
    runs then. Nor does any after `kill -9`. So a second process, forked before there are threads and doing nothing
    else, waits for the end of a pipe that this one holds, and speaks unless it was told to be silent.
    """

    def __init__(self, text: str):
        reader, self._writer = os.pipe()
        self._child = 0
        if sys.platform == "win32":  # there is no fork: the runtime's own message has to do
            return
        self._child = os.fork()
        if self._child == 0:
            os.close(self._writer)
            # A signal to the whole group is meant for the other process.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if not os.read(reader, 1):
                os.write(2, f"{text}\n".encode())
            os._exit(0)
        os.close(reader)

    def withhold(self) -> None:
        """Be silent: this process ends in good order, or has said why it does not."""
        if self._child:
            os.write(self._writer, b".")
            os.waitpid(self._child, 0)
            self._child = 0
