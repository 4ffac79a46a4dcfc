"""Which process of a job this is."""

import pytest

from bygrad._core.hosts import place_in_job, refuse_to_repeat


@pytest.mark.parametrize(
    ("hosts", "environment", "place"),
    [
        (None, {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (0, 1)),
        ("8,3", {}, (3, 8)),
        ("10.0.0.1:1234,8,3", {}, (3, 8)),
        ("auto", {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, (3, 8)),
        ("auto", {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        (  # mpirun in a job of SLURM, which itself has started one task
            "auto",
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
            (1, 2),
        ),
    ],
)
def test_a_process_knows_its_place(hosts, environment, place, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place_in_job(hosts) == place


@pytest.mark.parametrize("hosts", ["auto", "3", "2,2", "a,b"])
def test_what_names_no_place_is_refused(hosts, monkeypatch):
    for name in ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="COUNT,INDEX"):
        place_in_job(hosts)


def test_the_one_process_of_a_batch_script_waits_for_no_others(monkeypatch):
    for name in ("OMPI_COMM_WORLD_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="neither SLURM"):
        place_in_job("auto")


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        ({"SLURM_NTASKS": "8"}, 1),  # a shell of salloc
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 1),  # a batch script
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, 1),  # srun -n 1, or a shell in a step
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, 8),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2"}, 1),  # mpirun has its own daemons started by srun
    ],
)
def test_processes_started_together_do_not_all_do_the_same(environment, count, monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if count == 1:
        return refuse_to_repeat()
    with pytest.raises(ValueError, match=f"one of {count} processes .*--hosts auto.*--hosts none"):
        refuse_to_repeat()
