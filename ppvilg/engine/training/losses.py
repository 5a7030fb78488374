"""Loss terms between two logs: added up where they are computed, read when they are logged."""
from __future__ import annotations

import numpy as np
import paddle

from ppvilg.engine.parallel import distributed

_TERMS = 8  # named loss terms that a stage may have, "loss" included


class LossWindow:
    """Sums of per-sample terms by group, and gradient norms, since the last `reset`.

    Values that are no numbers are left out of the sums, and remembered.
    """

    def __init__(self, groups: list[str]):
        self.groups, self.names = groups, []
        self.reset()

    def reset(self) -> None:
        """A new window."""
        self._sums: dict[str, paddle.Tensor] = {}
        self._norms: list[paddle.Tensor] = []
        self._finite: dict[str, paddle.Tensor] = {}

    @paddle.no_grad()
    def add(self, terms: dict[str, paddle.Tensor], groups: np.ndarray) -> None:
        """Terms (N,) of a pass and the groups (N,) int of its samples."""
        members = paddle.to_tensor(np.eye(len(self.groups), dtype=np.float32)[groups])  # (N, G)
        for name, term in terms.items():
            values = term.detach().astype("float32")  # (N,)
            finite = paddle.isfinite(values)
            counted = paddle.stack([paddle.where(finite, values, paddle.zeros_like(values)),
                                    finite.astype("float32")])  # (2, N)
            sums = (counted.unsqueeze(2) * members).sum(1)  # (2, G)
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
            self._finite[name] = self._finite[name] & finite.all() if name in self._finite else finite.all()

    def add_norm(self, norm: paddle.Tensor) -> None:
        """Gradient norm of a step."""
        self._norms.append(norm)

    def not_finite(self) -> str | None:
        """What had a value that is no number, None where nothing had."""
        for name, finite in self._finite.items():
            if not bool(finite):
                return f"loss term {name!r}"
        norms_are = bool(paddle.isfinite(paddle.stack(self._norms)).all()) if self._norms else True
        return None if norms_are else "the gradient"

    def scalars(self) -> dict[str, float]:
        """Means over ranks and samples, also per group; every rank calls it. "gradient_norm" is this rank's group's."""
        norms = np.array([float(norm) for norm in self._norms])
        found = {"gradient_norm": float(norms[np.isfinite(norms)].mean())} if np.isfinite(norms).any() else {}
        self.names = sorted(self._sums) or self.names
        table = np.zeros((_TERMS, 2, len(self.groups)))  # groups without a step in the window send zeros
        for row, name in enumerate(self.names):
            if name in self._sums:
                table[row] = self._sums[name].numpy()
        table = distributed.mean_over_ranks(table.reshape(-1)).reshape(table.shape)
        for name, (sums, counts) in zip(self.names, table):
            if counts.any():
                found[name] = float(sums.sum() / counts.sum())
            if len(counts) > 1:
                found.update({f"{name}/{group}": float(s / c) for group, s, c in zip(self.groups, sums, counts) if c})
        return found
