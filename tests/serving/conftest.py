"""A store of either kind, and a PostgreSQL server of one's own where its programs are installed."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
import tempfile

import pytest

pytest.importorskip("sqlalchemy", reason="the service's packages are not installed: pip install ppvilg[serve]")
pytest.importorskip("fastapi", reason="the service's packages are not installed: pip install ppvilg[serve]")

from ppvilg.serving.store import Store, sqlite_url  # noqa: E402


@pytest.fixture(scope="session")
def postgres_server():
    """URL of a new PostgreSQL server that is gone after the tests, or a skip."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install ppvilg[postgres]")
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    found = programs[-1] if programs else os.path.dirname(shutil.which("initdb") or "")
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = tempfile.mkdtemp(prefix="ppvilg-postgres-", dir="/tmp")
    user = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres")
        user = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = os.path.join(folder, "data")
    command = [*user, f"{found}/initdb", "-D", data, "-U", "ppvilg", "-A", "trust", "--no-sync"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    start = [*user, f"{found}/pg_ctl", "-D", data, "-w", "-l", os.path.join(folder, "log"), "-o", settings, "start"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
    yield f"postgresql://ppvilg@127.0.0.1:{port}"
    subprocess.run([*user, f"{found}/pg_ctl", "-D", data, "-m", "immediate", "stop"], stdout=subprocess.DEVNULL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server):
    """URL of an empty database."""
    import psycopg

    name = f"test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgres_server}/{name}"


_numbers = iter(range(10**6))


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    """An empty store of each kind."""
    server = request.param == "postgresql"
    store = Store(request.getfixturevalue("postgres_url") if server else sqlite_url(tmp_path / "store.sqlite"))
    yield store
    store.close()
