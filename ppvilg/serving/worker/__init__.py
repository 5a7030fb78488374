"""Worker processes: what draws the jobs of the store. Loads Paddle."""

from .engine import Engine, Task
from .worker import Worker

__all__ = ["Engine", "Task", "Worker"]
