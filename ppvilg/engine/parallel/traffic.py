"""What this rank hands to collectives: calls, bytes and seconds by purpose and group of ranks."""
from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import paddle.distributed as dist

_COLLECTIVES = ("all_reduce", "reduce", "broadcast")


@dataclass
class Amount:
    """Calls, bytes of the tensors that were handed over, and seconds spent inside."""

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class Traffic:
    """Counts by (kind, group), for example ("gradients", "data"); `ranks` says who is in a group.

    Counted is every collective that goes through paddle.distributed, Fleet's own included, once `watch` was called.
    Bytes are those of the tensor; a ring of n ranks sends 2 (n - 1) / n of them per rank in an all-reduce. Kinds:
    "gradients", "weights" (sharding: every owner hands out what it updated), "agreement" (which weights have gradients,
    stop, finite, norm), "log" (scalars), "start" (initial weights), "other".
    """

    amounts: dict[tuple[str, str], Amount] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    ranks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kind: str = "other"

    def name_group(self, group, name: str) -> None:
        """Call a group of paddle.distributed by `name` from now on."""
        self.names[group.id] = name
        self.ranks[name] = tuple(group.ranks)

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """What is sent inside counts as `kind`."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def total(self, kind: str | None = None, group: str | None = None) -> Amount:
        """Sum over the counts of a kind, a group, or all."""
        chosen = [amount for (of, to), amount in self.amounts.items() if kind in (None, of) and group in (None, to)]
        return Amount(sum(a.calls for a in chosen), sum(a.bytes for a in chosen), sum(a.seconds for a in chosen))

    def as_dict(self) -> dict[str, dict]:
        """{"gradients/data": {"calls", "bytes", "seconds", "ranks"}, ...} for a JSON file."""
        return {f"{kind}/{group}": {**vars(amount), "ranks": list(self.ranks.get(group, ()))}
                for (kind, group), amount in sorted(self.amounts.items())}

    def reset(self) -> None:
        """Count from zero."""
        self.amounts.clear()

    def watch(self) -> None:
        """Count every collective of this process from now on; a second call changes nothing."""
        for name in _COLLECTIVES:
            original = getattr(dist, name)
            if not hasattr(original, "counted_by"):
                setattr(dist, name, self._counted(original))

    def _counted(self, original):
        @functools.wraps(original)
        def call(tensor, *arguments, **options):
            name = self._group_name(arguments, options)
            amount = self.amounts.setdefault((self.kind, name), Amount())
            amount.calls += 1
            amount.bytes += tensor.size * tensor.element_size()
            started = time.perf_counter()
            task = original(tensor, *arguments, **options)
            amount.seconds += time.perf_counter() - started
            return _Timed(task, amount) if task is not None and options.get("sync_op") is False else task

        call.counted_by = self
        return call

    def _group_name(self, arguments, options) -> str:
        group = options.get("group") or next((a for a in arguments if hasattr(a, "process_group")), None)
        if group is None:
            return "world"
        return self.names.get(group.id, "ranks " + ",".join(map(str, group.ranks)))


class _Timed:
    """A running collective whose waiting time is counted."""

    def __init__(self, task, amount: Amount):
        self._task, self._amount = task, amount

    def wait(self, *arguments):
        started = time.perf_counter()
        try:
            return self._task.wait(*arguments)
        finally:
            self._amount.seconds += time.perf_counter() - started

    def __getattr__(self, name: str):
        return getattr(self._task, name)
