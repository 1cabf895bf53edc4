"""The archive: sharing, reservations, faults of the disk, older files, what is kept in memory."""

import gzip
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from archive_tools import SETTINGS, archive_at, ended_trial, numbers_in
from ase import Atoms
from ase.db import connect

from ase_gss import database
from ase_gss.archive import SCHEMA, Archive, ArchiveError
from ase_gss.errors import InputError
from ase_gss.found import Found
from ase_gss.refined_rows import Refined
from ase_gss.report import minima_of, summary
from ase_gss.trial import Ended

HERE = Path(__file__).parent


def helper(*arguments):
    """`archive_tools` in a process of its own; it stops after its first line until it gets one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "archive_tools.py"), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return process, process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.db"


@pytest.fixture(params=["file", "memory"])
def archive(request, path):
    return archive_at(path if request.param == "file" else None)


def test_generations_are_reserved_in_turn_and_cut_at_the_last(archive):
    assert archive.reserve(4, 10) == [0, 1, 2, 3]
    assert archive.reserve(4, 10) == [4, 5, 6, 7]
    assert archive.reserve(4, 10) == [8, 9]
    assert archive.reserve(4, 10) == []
    assert archive.reserve(4, None) == [10, 11]
    archive.append([ended_trial(number) for number in (0, 1, 5)])
    archive.release()
    assert archive.reserve(4, 10) == [2, 3]
    assert archive.reserve(4, 10) == [4, 6, 7]
    archive.append([ended_trial(number) for number in (2, 3, 4, 6, 7)])
    assert archive.reserve(4, 10) == [8, 9]
    assert archive.reserve(4, 8) == []
    assert archive.numbers == set(range(8))


def test_a_trial_is_looked_up_by_the_index_however_many_there_are(path):
    archive = archive_at(path)

    def steps():
        """Of SQLite's machine."""
        taken = []
        with sqlite3.connect(path) as connection:
            connection.set_progress_handler(lambda: taken.append(1), 1)
            assert database.trials_among(connection.cursor(), [7, 300, 8]) == {7, 8}
        return len(taken)

    archive.append([ended_trial(number) for number in range(10)])
    few = steps()
    archive.append([ended_trial(number) for number in range(10, 300)])
    assert steps() == pytest.approx(few, abs=10)


def test_a_living_search_keeps_its_trials(path):
    ours, theirs = archive_at(path), archive_at(path)
    assert ours.reserve(4, 20) == [0, 1, 2, 3]
    assert theirs.reserve(4, 20) == [4, 5, 6, 7]
    assert ours.reserve(4, 20) == [8, 9, 10, 11]
    theirs.append([ended_trial(4), ended_trial(5)])
    theirs.release()
    assert ours.reserve(4, 20) == [6, 7]
    assert theirs.reserve(4, 20) == [12, 13, 14, 15]
    del ours  # and nobody gives back what it has
    assert theirs.reserve(4, 20) == [0, 1, 2, 3]


def test_other_sizes_of_generations_do_not_overlap(path):
    ours, theirs = archive_at(path), archive_at(path)
    assert ours.reserve(4, 20) == [0, 1, 2, 3]
    assert theirs.reserve(6, 20) == [4, 5]
    assert ours.reserve(4, 20) == [6, 7]
    theirs.append([ended_trial(4), ended_trial(5)])
    theirs.release()
    assert theirs.reserve(12, 20) == [8, 9, 10, 11]
    ours.release()
    assert ours.reserve(20, 20) == [0, 1, 2, 3, 6, 7]
    assert theirs.reserve(20, 20) == [12, 13, 14, 15, 16, 17, 18, 19]


def test_what_others_finish_is_told_once_with_its_end(path):
    ours, theirs = archive_at(path), archive_at(path)
    ours.append([ended_trial(0)])
    assert [record.number for record in theirs.refresh()] == [0]
    theirs.append([ended_trial(1), ended_trial(2, Ended.CALCULATOR, "no force")])
    ours.append([ended_trial(3)])
    new = ours.refresh()
    assert [(record.number, record.ended, record.reason) for record in new] == [
        (1, Ended.MINIMUM, ""),
        (2, Ended.CALCULATOR, "no force"),
    ]
    np.testing.assert_array_equal(ours.atoms_of(1).positions, ended_trial(1).atoms.positions)
    assert ours.refresh() == []
    assert [record.number for record in theirs.refresh()] == [3]
    assert ours.totals == theirs.totals == Archive(path).totals
    assert archive_at(None).refresh() == []


def test_a_trial_that_another_has_finished_counts_as_theirs(path):
    ours, theirs = archive_at(path), archive_at(path)
    theirs.append([ended_trial(0, energy=-5.0), ended_trial(1)])
    new = ours.append([ended_trial(0, energy=-7.0), ended_trial(2)])
    assert [record.number for record in new] == [0, 1, 2]
    assert new[0].energy == -5.0
    assert numbers_in(path) == [0, 1, 2]
    assert [record.number for record in ours.records] == [0, 1, 2]
    assert Found(ours).minima.energies == Found(Archive(path)).minima.energies


def test_refined_minima_are_shared(path):
    ours, theirs = archive_at(path), archive_at(path)
    ours.append([ended_trial(0)])
    theirs.refresh()
    refined = Refined(0, ended_trial(0).atoms, Ended.MINIMUM, "", 0.001, False, 7, 0)
    ours.append_refined(refined)
    ours.append_refined(Refined(0, ended_trial(0).atoms, Ended.CALCULATOR, "no force", 0.001, False, 2, 0))
    for archive in (ours, theirs):
        archive.refresh()
        assert archive.totals["refinement_calls"] == 9
        assert archive.refined[0].fmax == 0.001
    theirs.mark_minima({0: 1})
    assert [row.refined_trial for row in connect(path).select("minimum>0")] == [0]


def test_two_processes_share_the_trials_of_one_search(path):
    workers = [helper("work", path, 60) for _ in range(2)]
    for process, _ in workers:  # both have the file before them that neither has made
        process.stdin.write("go\n")
        process.stdin.flush()
    done = []
    for process, _ in workers:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        done.append([int(number) for number in out.split()])
    assert sorted(done[0] + done[1]) == list(range(60))
    assert numbers_in(path) == list(range(60))
    assert not list(path.parent.glob("*.part"))
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_trials_of_a_dead_process_come_first(path):
    process, line = helper("reserve", path, 4)
    assert line == "0 1 2 3"
    ours = archive_at(path)
    assert ours.reserve(4, 20) == [4, 5, 6, 7]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ours.reserve(4, 20) == [0, 1, 2, 3]
    assert ours.reserve(4, 20) == [8, 9, 10, 11]


@pytest.mark.parametrize(("age", "free"), [(60, [4, 5, 6, 7]), (3600, [0, 1, 2, 3])])
def test_a_search_on_another_host_lives_by_its_signs(path, age, free):
    theirs = archive_at(path)
    theirs.reserve(4, 20)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE reservations SET host = 'elsewhere', heartbeat = ?", (time.time() - age,))
    connection.close()
    assert archive_at(path).reserve(4, 20) == free


@pytest.mark.parametrize(
    "sign", [lambda a: a.heartbeat(database.database_at(a.path)), lambda a: a.append([ended_trial(0)])]
)
def test_signs_of_life(path, sign):
    archive = archive_at(path)
    archive.reserve(4, 20)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE reservations SET heartbeat = 0")
    connection.close()
    sign(archive)
    ((beat,),) = sqlite3.connect(path).execute("SELECT heartbeat FROM reservations").fetchall()
    assert time.time() - beat < 60


def test_in_memory_no_trial_is_kept_twice_and_none_is_lost():
    archive = archive_at(None)
    archive.append([ended_trial(0)])
    assert [record.number for record in archive.append([ended_trial(0), ended_trial(1)])] == [1]
    assert archive.numbers == {0, 1}
    assert archive.totals["force_calls"] == 3


def test_writers_wait_for_one_another(path, monkeypatch):
    archive = archive_at(path)
    archive.append([ended_trial(0)])
    process, _ = helper("lock", path)
    monkeypatch.setattr(database, "PATIENCE", 0.2)
    with pytest.raises(ArchiveError, match=r"x\.db was locked by another program for more than 0\.2 s: end"):
        archive.append([ended_trial(1)])
    assert archive.numbers == {0}
    monkeypatch.setattr(database, "PATIENCE", 30.0)
    process.stdin.write("go\n")  # it goes on for a second
    process.stdin.flush()
    archive.append([ended_trial(1)])
    process.communicate(timeout=30)
    assert numbers_in(path) == [0, 1]


def test_another_search_that_was_faster_is_noticed(path):
    ours, theirs = archive_at(path), archive_at(path, formula="Ar5")
    theirs.append([ended_trial(0)])
    for write in (lambda: ours.append([ended_trial(0)]), lambda: ours.reserve(4), lambda: ours.write_metadata(x=1)):
        with pytest.raises(InputError, match="of a search with formula Ar5, not Ar4"):
            write()
    assert ours.numbers == set()


@contextmanager
def files_no_larger_than(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_grow(path):
    archive = archive_at(path)
    archive.append([ended_trial(0)])
    many = [ended_trial(number) for number in range(1, 40)]
    before = (*archive.records,), dict(archive.totals), dict(archive.metadata)
    with files_no_larger_than(path.stat().st_size):
        with pytest.raises(ArchiveError, match=r"x\.db cannot be written .*full: .* start the search again"):
            archive.append(many)
        with pytest.raises(ArchiveError, match="cannot be written"):
            archive.write_metadata(much="x" * 100_000)
    assert before == ((*archive.records,), archive.totals, archive.metadata)
    assert numbers_in(path) == [0]
    archive.append(many)
    assert numbers_in(path) == list(range(40))
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_cannot_even_be_begun(path):
    archive = archive_at(path)
    with files_no_larger_than(20_000), pytest.raises(ArchiveError, match="cannot be written"):
        archive.reserve(4)
    assert not list(path.parent.iterdir())
    assert archive.reserve(4) == [0, 1, 2, 3]


@pytest.mark.skipif(not shutil.which("mount") or os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        archive, number = archive_at(disk / "x.db"), 0
        with suppress(ArchiveError):
            while number < 1000:
                archive.append([ended_trial(number)])
                number += 1
        with pytest.raises(ArchiveError, match="the disk is full: free some space"):
            archive.append([ended_trial(number) for number in range(number, 1000)])
        assert archive.numbers == set(numbers_in(disk / "x.db")) == set(range(number))
        assert number > 0
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@contextmanager
def not_root():
    """As somebody who may not write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder of somebody who is not root, outside of pytest's own, which nobody else may enter."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_read_only_is_said_at_the_first_write_and_can_still_be_read(open_folder, what):
    path = open_folder / "x.db"
    with not_root():
        archive_at(path).append([ended_trial(0)])
        (path if what == "file" else open_folder).chmod(0o444 if what == "file" else 0o555)
        archive = archive_at(path)
        assert len(minima_of(archive)) == 1
        for write in (lambda: archive.reserve(4), lambda: archive.append([ended_trial(1)])):
            with pytest.raises(ArchiveError, match=r"x\.db cannot be opened or written .*make the file and its folder"):
                write()
        assert archive.numbers == {0}
        other = archive_at(open_folder / "new.db")
        if what == "folder":
            with pytest.raises(ArchiveError, match=r"new\.db"):
                other.reserve(4)


def test_a_file_that_is_gone_is_not_begun_anew(path):
    archive = archive_at(path)
    archive.append([ended_trial(0)])
    path.unlink()
    with pytest.raises(ArchiveError, match=r"x\.db is gone"):
        archive.append([ended_trial(1)])
    assert not path.exists()
    path.parent.rename(path.parent.with_name("elsewhere"))
    with pytest.raises(ArchiveError, match=r"x\.db is gone, its folder included"):
        archive.append([ended_trial(1)])


def test_what_a_kill_leaves_half_written_is_undone_by_the_next_reader(path):
    archive_at(path).append([ended_trial(0)])
    process, _ = helper("half", path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.with_name("x.db-journal").exists()
    assert Archive(path).numbers == {0}
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_damaged_file_is_one_sentence(path):
    archive = archive_at(path)
    archive.append([ended_trial(number) for number in range(20)])
    content = bytearray(path.read_bytes())
    content[4096 : len(content)] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.db is damaged"):
        Archive(path)
    with pytest.raises(ArchiveError, match=r"x\.db is damaged"):
        archive.append([ended_trial(30)])


@pytest.fixture
def first_schema(path):
    with gzip.open(HERE / "data" / "schema1.db.gz") as packed, open(path, "wb") as file:
        shutil.copyfileobj(packed, file)
    return path


def test_a_file_of_the_first_schema_is_read_and_brought_up_when_written(first_schema):
    before = first_schema.read_bytes()
    archive = Archive(first_schema)
    assert archive.metadata["schema"] == 1
    facts = summary(archive)
    assert (facts["trials"], facts["force_calls"], facts["score_calls"], facts["refinement_calls"]) == (36, 33, 576, 11)
    assert facts["ended"] == {"minimum": 32, "known": 4}
    assert Found(archive).minima.hits == [36]
    assert len(archive.refined) == 1
    assert first_schema.read_bytes() == before
    archive.open_for(archive.metadata["settings"])
    assert archive.reserve(32, 40) == [36, 37, 38, 39]
    archive.append([ended_trial(36)])
    archive.write_metadata(trials=37)
    assert archive.metadata["schema"] == SCHEMA
    again = Archive(first_schema)
    assert again.metadata["schema"] == SCHEMA
    assert again.totals["trials"] == 37


def test_a_newer_schema_is_refused(path):
    archive_at(path).append([ended_trial(0)])
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE information SET value = replace(value, '\"schema\": {SCHEMA}', '\"schema\": 99')")
    connection.close()
    with pytest.raises(InputError, match=r"x\.db is not a database of ase-gss, or one of a newer version: pip"):
        Archive(path)


def test_every_record_comes_back_as_it_was(path):
    archive = archive_at(path)
    trials = [
        ended_trial(0, regime="hot", bonds="abc"),
        ended_trial(1, Ended.KNOWN, "looks like the end of trial 0", known=0),
        ended_trial(2, Ended.CALCULATOR, "a\0b", energy=None),
        ended_trial(3, Ended.NOT_CONVERGED, "300 steps"),
    ]
    archive.append(trials)
    again = Archive(path)
    expected = [record if record.number != 2 else again.records[2] for record in archive.records]
    assert again.records == expected
    assert again.records[2].reason == "ab"
    assert (again.records[0].regime, again.records[0].bonds) == ("hot", "abc")
    for trial, frames in zip(trials, again.frames(below=4, most=100), strict=True):
        end = again.atoms_of(trial.number)
        np.testing.assert_array_equal(end.positions, trial.atoms.positions)
        if trial.atoms.calc is not None:
            np.testing.assert_array_equal(end.get_forces(), trial.atoms.get_forces())
        np.testing.assert_array_equal(frames.positions, trial.frames.positions)
        np.testing.assert_array_equal(frames.forces, trial.frames.forces)
    assert [(record.number, atoms is not None) for record, atoms in again.ends()] == [
        (0, True),
        (1, False),
        (2, False),
        (3, False),
    ]
    (there,), (here,) = (each.starts(each.records).values() for each in (again, archive))
    np.testing.assert_array_equal(there.positions, here.positions)
    np.testing.assert_array_equal(here.positions, trials[0].start)
    with pytest.raises(KeyError):
        again.atoms_of(9)


def test_records_hold_no_structures(path):
    archive = archive_at(path)
    for start in range(0, 40, 4):
        archive.append([ended_trial(number) for number in range(start, start + 4)])
    assert not any(isinstance(getattr(record, name), Atoms) for record in archive.records for name in record.__slots__)
    assert len(archive._ends) == 4
    assert len({id(record.reason) for record in Archive(path).records}) == 1


def test_marks_move_with_the_ranks(path):
    archive = archive_at(path)
    archive.append([ended_trial(number) for number in range(5)])
    for ranks in ({0: 1, 3: 2}, {3: 1, 4: 2, 0: 3}, {4: 1}):
        archive.mark_minima(ranks)
        marked = {row.trial: row.minimum for row in connect(path).select("minimum>0")}
        assert marked == ranks
        assert {row.trial for row in connect(path).select("minimum")} == set(ranks)
    assert connect(path).count("trial>=0") == 5


def test_totals_of_two_searches_are_kept_beside_each_other(path):
    ours, theirs = archive_at(path), archive_at(path)
    ours.write_metadata(a=1)
    theirs.write_metadata(b=2)
    assert {key: Archive(path).metadata[key] for key in "ab"} == {"a": 1, "b": 2}
    assert Archive(path).metadata["settings"] == SETTINGS


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="its folder does not exist"):
        Archive(tmp_path / "no" / "x.db")
    with pytest.raises(InputError, match=r"There is no database .*x\.db"):
        Archive(tmp_path / "x.db", must_exist=True)
