"""A data worker: `python -m ppvilg.data.loading.worker <file descriptor>`, started by `WorkerPool`."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from .pool import serve

if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
