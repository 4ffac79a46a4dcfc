"""Which process of a job this is."""

import pytest

from bygrad._core.hosts import place_in_job


@pytest.mark.parametrize(
    ("hosts", "environment", "place"),
    [
        (None, {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (0, 1)),
        ("8,3", {}, (3, 8)),
        ("10.0.0.1:1234,8,3", {}, (3, 8)),
        ("auto", {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (3, 8)),
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
