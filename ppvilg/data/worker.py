"""A data worker: `python -m ppvilg.data.worker <file descriptor>`, started by `ppvilg.data.loader.WorkerPool`."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from .loader import serve

if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
