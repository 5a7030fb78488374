"""Drawings of many people that share denoising steps.

A picture is drawn on its own terms (prompt, seed, size, steps, guidance, sampler) and joins whatever is being drawn at
the next sweep. A sweep takes every drawing one step further; where experts are read from the disk it takes every
drawing through all of its steps, expert by expert, so that each is read once. Owners take turns for the slots.

Pictures of other adapters never share a step. While they are drawn at the same time a sweep takes each kind a few steps
further, for to merge an adapter into the weights takes as long as some steps.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..store import Job

STEPS_PER_CHANGE = 4  # of a picture before the weights are changed for one of other adapters


class Drawing(Protocol):
    """A picture between prompt and decoder."""

    step: int  # steps done
    total: int

    @property
    def done(self) -> bool: ...

    @property
    def expert(self) -> int: ...

    @property
    def timestep(self) -> float: ...

    @property
    def shares_with(self) -> tuple: ...

    @property
    def adapters(self) -> tuple: ...


class Painter(Protocol):
    """What the engine needs of a pipeline."""

    streams_experts: bool
    adapters: tuple  # that are in its weights now

    def begin(self, settings: dict, seed: int, image, mask) -> Drawing: ...

    def step(self, drawings: Sequence[Drawing]) -> None: ...


@dataclass(eq=False)
class Task:
    """One picture of a job."""

    job: Job
    index: int
    drawing: Drawing | None = None
    block: int = -1  # the expert that took the last step

    @property
    def seed(self) -> int:
        return self.job.request["seed"] + self.index

    @property
    def is_done(self) -> bool:
        return self.drawing is not None and self.drawing.done


class SharedStepError(Exception):
    """A step failed; `tasks` shared it, and their drawings cannot be trusted any more."""

    def __init__(self, tasks: list[Task]) -> None:
        super().__init__(f"a step of {len(tasks)} pictures failed")
        self.tasks = tasks


class Engine:
    """Which pictures are drawn now, which wait, and in which order they share steps.

    slots: pictures drawn at once, and in one step together. An owner of whom nothing is drawn is let in at once
    beyond them, up to `slots` times 4.
    """

    def __init__(self, painter: Painter, slots: int = 8) -> None:
        self.painter = painter
        self.slots = slots
        self.waiting: deque[Task] = deque()
        self.drawn: list[Task] = []

    @property
    def tasks(self) -> list[Task]:
        return [*self.drawn, *self.waiting]

    @property
    def room(self) -> int:
        """How many more pictures are wanted from the queue."""
        return max(self.slots - len(self.drawn) - len(self.waiting), 0)

    @property
    def room_for_newcomers(self) -> int:
        return max(4 * self.slots - len(self.drawn), 0)

    def add(self, job: Job, done: set[int]) -> None:
        """Takes on the pictures of a job except those `done` already."""
        self.waiting.extend(Task(job, index) for index in range(job.wanted) if index not in done)

    def drop(self, job: str) -> None:
        """Forgets all pictures of a job."""
        self.waiting = deque(task for task in self.waiting if task.job.id != job)
        self.drawn = [task for task in self.drawn if task.job.id != job]

    def admit(self, begin: Callable[[Task], bool]) -> None:
        """Moves waiting pictures into free slots, owners in turns. `begin` prepares one; False: its job is dropped."""
        while self.waiting:
            drawn = Counter(task.job.owner for task in self.drawn)
            task = min(self.waiting, key=lambda task: drawn[task.job.owner])  # the first of those in the queue's order
            newcomer = drawn[task.job.owner] == 0
            if len(self.drawn) >= (4 * self.slots if newcomer else self.slots):
                return
            self.waiting.remove(task)
            if begin(task):
                self.drawn.append(task)
            else:
                self.drop(task.job.id)

    def sweep(self) -> Iterator[list[Task]]:
        """One sweep; yields the pictures after each step that they shared.

        Jobs may be dropped in between; finished pictures leave with `take_finished`.
        """
        settings = {task.drawing.adapters for task in self._unfinished()}
        for adapters in sorted(settings, key=lambda each: (each != self.painter.adapters, repr(each))):
            if self.painter.streams_experts:
                while pending := self._unfinished(adapters):
                    expert = max(task.drawing.expert for task in pending)
                    yield from self._step_all([task for task in pending if task.drawing.expert == expert])
            else:
                for _ in range(1 if len(settings) == 1 else STEPS_PER_CHANGE):
                    yield from self._step_all(self._unfinished(adapters))

    def take_finished(self) -> list[Task]:
        """Pictures that have taken their last step."""
        finished = [task for task in self.drawn if task.is_done]
        self.drawn = [task for task in self.drawn if not task.is_done]
        return finished

    def _unfinished(self, adapters: tuple | None = None) -> list[Task]:
        """Pictures with steps left: all, or those with these adapters."""
        return [task for task in self.drawn if not task.is_done and adapters in (None, task.drawing.adapters)]

    def _step_all(self, tasks: Sequence[Task]) -> Iterator[list[Task]]:
        for group in self._groups(tasks):
            yield from self._step(group)

    def _groups(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """Pictures that can take one step in one batch, at most `slots` in each."""
        groups: dict[tuple, list[Task]] = {}
        for task in tasks:
            groups.setdefault(task.drawing.shares_with, []).append(task)
        return [
            group[start : start + self.slots] for group in groups.values() for start in range(0, len(group), self.slots)
        ]

    def _step(self, group: list[Task]) -> Iterator[list[Task]]:
        group = [task for task in group if task in self.drawn]  # a job may have been cancelled meanwhile
        if group:
            for task in group:
                task.block = task.drawing.expert
            try:
                self.painter.step([task.drawing for task in group])
            except Exception as error:  # a step of one job must not end those of others: the worker sorts them out
                raise SharedStepError(group) from error
            yield group
