"""What the service remembers: jobs, pictures, keys, usage and workers, in SQLite or PostgreSQL."""

from .jobs import Job, QueueLimits
from .store import Store, sqlite_url

__all__ = ["Job", "QueueLimits", "Store", "sqlite_url"]
