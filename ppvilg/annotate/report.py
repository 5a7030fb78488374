"""What became of every sample of some units, counted from their sidecars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ppvilg.data.report import kind_of

from .sidecar import read_header, read_lines_of
from .units import Unit

_SHOWN = 10


@dataclass
class AnnotationReport:
    """Samples kept, those left out by (stage, reason), other problems; objects by label, pictures without any."""

    kept: int = 0
    captioned: int = 0
    without_objects: int = 0
    left_out: Counter = field(default_factory=Counter)
    problems: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)

    def add(self, line: dict) -> None:
        """Count one line."""
        rejected = line.get("rejected")
        if rejected:
            self.left_out[rejected["stage"], kind_of(rejected["reason"])] += 1
            return
        objects = line.get("objects", ())
        self.kept += 1
        self.captioned += "generated" in line.get("captions", {})
        self.without_objects += not objects
        self.labels.update(item["label"] for item in objects)

    def as_dict(self) -> dict:
        """For JSON."""
        left_out = [{"stage": stage, "reason": reason, "samples": count}
                    for (stage, reason), count in self.left_out.most_common()]  # fmt: skip
        return {"kept": self.kept, "captioned": self.captioned, "without_objects": self.without_objects,
                "left_out": left_out, "problems": dict(self.problems), "labels": dict(self.labels.most_common())}

    def __str__(self) -> str:
        objects = sum(self.labels.values())
        lines = [f"{self.kept} samples, {self.left_out.total()} left out, {self.problems.total()} other problems; "
                 f"{self.captioned} generated captions, {objects} objects of {len(self.labels)} labels, "
                 f"{self.without_objects} samples without any"]  # fmt: skip
        lines += [f"  {count} x {stage}: {reason}" for (stage, reason), count in self.left_out.most_common()]
        lines += [f"  {count} x {reason}" for reason, count in self.problems.most_common()]
        if self.labels:
            common = ", ".join(f"{label} {count}" for label, count in self.labels.most_common(_SHOWN))
            lines.append(f"  most frequent: {common}")
        return "\n".join(lines)


def report_on(units: Sequence[Unit]) -> AnnotationReport:
    """Counts of the units whose sidecars are there."""
    report = AnnotationReport()
    for unit in units:
        if unit.output.exists():
            report.problems.update(kind_of(each["reason"]) for each in read_header(unit.output)["problems"])
            for line in read_lines_of(unit.output):
                report.add(line)
    return report
