"""The data behind the reports: what was measured on which machine, one file per kind and machine.

docs/data/<kind>-<hardware>.jsonl holds one run of a script: a line that says where and how it was
made, then a line per row, measured or failed. Rows keep measured values only; ratios, shares and
percentages are worked out when they are shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from pydantic import Field, ValidationError

from ..files import write_whole
from ..machine import Model, Provenance
from ..paths import BadInput

Key = tuple[str | int | None, ...]


class Row(Model):
    """Something that was measured. Subclasses name the fields that tell it from the others."""

    identity: ClassVar[tuple[str, ...]]
    definition: str | None = None
    """Of the workload; None for what belongs to none, such as a rate of the GPU."""
    commit: str = ""
    """Of the bundle when this was measured, with a + if files were changed."""

    @property
    def key(self) -> Key:
        return tuple(getattr(self, name) for name in self.identity)


class Failed(Model):
    """A row that could not be measured, and why."""

    key: Key
    reason: str
    commit: str = ""


R = TypeVar("R", bound=Row)


class Report(Model, Generic[R]):
    """A run's rows; subclasses give `kind`, the script that makes it, and the type of a row."""

    kind: ClassVar[str]
    script: ClassVar[str]
    row_types: ClassVar[tuple[type[Row], ...]]
    provenance: Provenance
    planned: int
    """Rows of the whole run; more than there are if it was interrupted."""
    rows: list[R] = Field(default_factory=list)
    failed: list[Failed] = Field(default_factory=list)

    @property
    def missing(self) -> int:
        return max(0, self.planned - len(self.rows) - len(self.failed))

    def add(self, results: Sequence[R | Failed]) -> None:
        """Put results in place of those with the same key."""
        again = {result.key for result in results}
        self.rows = [row for row in self.rows if row.key not in again]
        self.failed = [failed for failed in self.failed if failed.key not in again]
        for result in results:
            if isinstance(result, Failed):
                self.failed.append(result)
            else:
                self.rows.append(result)


AnyReport = TypeVar("AnyReport", bound=Report)


def report_path(folder: Path, kind: type[Report], hardware: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    return folder / f"{kind.kind}-{slug}.jsonl"


def save(report: Report, path: Path) -> None:
    """Replace the file as a whole."""
    head = report.model_dump_json(exclude={"rows", "failed"})
    rows = [row.model_dump_json(exclude_defaults=True) for row in (*report.rows, *report.failed)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "\n".join([head, *rows]) + "\n")


def load(kind: type[AnyReport], path: Path) -> AnyReport:
    """Read one file; BadInput names the file, the line and the first key that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: expected UTF-8 text: {error}") from error
    if not lines:
        raise BadInput(f"{path}: expected a line on where it was made, got an empty file")
    report = _parse(kind, lines[0], f"{path}, line 1")
    for number, line in enumerate(lines[1:], start=2):
        where = f"{path}, line {number}"
        if '"reason":' in line:
            report.failed.append(_parse(Failed, line, where))
        else:
            report.rows.append(_parse_row(kind, line, where))
    return report


def _parse_row(kind: type[Report], line: str, where: str) -> Row:
    """The types have no fields in common that would let a line be taken for another's."""
    usual, *others = kind.row_types
    for row_type in others:
        try:
            return row_type.model_validate_json(line)
        except ValidationError:
            continue  # what is wrong is told of the usual type
    return _parse(usual, line, where)


M = TypeVar("M", bound=Model)


def _parse(model: type[M], line: str, where: str) -> M:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise BadInput(f"{where}: {key}: {first['msg']}".replace(": :", ":")) from None


def load_all(kind: type[AnyReport], folder: Path) -> list[AnyReport]:
    """The reports of one kind, of all machines."""
    return [load(kind, path) for path in sorted(folder.glob(f"{kind.kind}-*.jsonl"))]


def resumed(report: AnyReport, path: Path) -> AnyReport:
    """`report` with the rows that `path` has, without the failed ones.

    Raises BadInput if those were measured in another environment: one table, one machine.
    """
    if not path.exists():
        return report
    old = load(type(report), path)
    ours, theirs = report.provenance.environment, old.provenance.environment
    if differing := sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    ):
        found = [f"{name} {theirs.get(name)} (here {ours.get(name)})" for name in differing]
        raise BadInput(f"{path}: cannot be resumed here: measured with {', '.join(found)}")
    provenance = old.provenance.model_copy(update={"command": report.provenance.command})
    return report.model_copy(update={"provenance": provenance, "rows": old.rows})
