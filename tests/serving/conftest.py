"""A tiny model and its service, a store of either kind, a PostgreSQL server where its programs are installed.

The fixtures are here alone: one that test files import from elsewhere is made again for each of them.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import tempfile

import pytest

pytest.importorskip("sqlalchemy", reason="the service's packages are not installed: pip install ppvilg[serve]")
pytest.importorskip("fastapi", reason="the service's packages are not installed: pip install ppvilg[serve]")

from ppvilg.serving.store import Store, sqlite_url  # noqa: E402
from ppvilg.serving.store.keys import new_key  # noqa: E402
from tests.bundles import tiny  # noqa: E402, F401  (a fixture)
from tests.pipelines.conftest import components  # noqa: E402, F401
from tests.serving.running import free_port, running  # noqa: E402

SECONDS = 120  # for a program of PostgreSQL


@pytest.fixture(scope="session")
def model_folder(tiny, tmp_path_factory):  # noqa: F811
    """A tiny pipeline as a folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def served(model_folder, tmp_path_factory):
    """A service with a key, open to this machine without one too."""
    with running(model_folder, tmp_path_factory.mktemp("service")) as found:
        found.ak, found.sk = new_key(found.service.store, "test")
        yield found


@pytest.fixture(scope="package")
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
    port, data = free_port(), os.path.join(folder, "data")

    def run(program: str, *arguments: str, check: bool = True) -> None:
        command = [*user, f"{found}/{program}", "-D", data, *arguments]
        subprocess.run(command, check=check, timeout=SECONDS, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        run("initdb", "-U", "ppvilg", "-A", "trust", "--no-sync")
        run("pg_ctl", "-w", "-l", os.path.join(folder, "log"), "-o", settings, "start")
        yield f"postgresql://ppvilg@127.0.0.1:{port}"
    finally:
        run("pg_ctl", "-m", "immediate", "stop", check=False)
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
