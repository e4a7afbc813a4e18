"""Two benchmarks side by side: what became faster, what slower, and what is within the spread of both."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import Self

from spt_deploy.bench import shown_batches
from spt_deploy.errors import InputError

_WHAT_MATTERS = ("processor", "cores")  # of a machine; versions are what one may want to compare


@dataclass(frozen=True)
class ComparedRow:
    """One contender in both.

    Attributes:
        name: of the contender.
        batch: images a batch.
        at_once: batches a run, see `bench.BenchRow`.
        before_ms: median of the earlier benchmark, in milliseconds; ``after_ms`` of the later.
        after_ms: see ``before_ms``.
        speedup: how many times faster the later one is, median by median.
        speedup_range: the same with the quartiles that are worst and best for it. Where 1 lies inside, nothing is
            shown to have changed.
    """

    name: str
    batch: int
    at_once: int
    before_ms: float
    after_ms: float
    speedup: float
    speedup_range: tuple[float, float]

    @property
    def verdict(self) -> str:
        """``faster``, ``slower`` or ``same``: within the spread."""
        low, high = self.speedup_range
        return "faster" if low > 1 else "slower" if high < 1 else "same"


@dataclass(frozen=True)
class Comparison:
    """What two benchmarks have in common, and what not.

    Attributes:
        rows: contenders of both, at the same batch size and as many at a time.
        only_before: contenders of the earlier one alone; ``only_after`` of the later.
        only_after: see ``only_before``.
        differences: of the machines and versions, a sentence each.
    """

    rows: tuple[ComparedRow, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    differences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        rows = [asdict(row) | {"verdict": row.verdict} for row in self.rows]
        return asdict(self) | {"rows": rows}


def compare(before: Path, after: Path) -> Comparison:
    """Set the document that ``bench --json`` printed into one file beside that in another.

    Raises:
        InputError: when a file is not there or holds no such document, or both have no contender in common.
    """
    earlier, later = _document(before), _document(after)
    old, new = ({_Key.of(row): row for row in document["rows"]} for document in (earlier, later))
    rows = [_row(old[key], new[key]) for key in old if key in new]
    if not rows:
        if {key.name for key in old} & {key.name for key in new}:
            raise InputError(
                f"{before} was measured at batch {_batches(old)} and {after} at batch {_batches(new)}; "
                "bench both with the same --batch, and both or none with --throughput"
            )
        raise InputError(f"{before} and {after} have no contender in common; bench the same artefacts for both")
    machines = earlier["machine"], later["machine"]
    differences = [
        f"{name} was {machines[0].get(name, 'not there')} and is {machines[1].get(name, 'not there')}"
        for name in dict.fromkeys((*_WHAT_MATTERS, *machines[0], *machines[1]))
        if machines[0].get(name) != machines[1].get(name) and name != "date"
    ]
    return Comparison(
        tuple(rows),
        tuple(f"{key.name}, batch {key.batches}" for key in old if key not in new),
        tuple(f"{key.name}, batch {key.batches}" for key in new if key not in old),
        tuple(differences),
    )


class _Key(NamedTuple):
    """What two rows must have in common to be compared."""

    name: str
    batch: int
    at_once: int

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        return cls(row["name"], row["batch"], row.get("at_once", 1))  # which older documents do not say

    @property
    def batches(self) -> str:
        return shown_batches(self.batch, self.at_once)


def _batches(keys: Iterable[_Key]) -> str:
    return ", ".join(shown_batches(*size) for size in sorted({(key.batch, key.at_once) for key in keys}))


def _row(old: dict[str, Any], new: dict[str, Any]) -> ComparedRow:
    return ComparedRow(
        name=old["name"],
        batch=old["batch"],
        at_once=old.get("at_once", 1),
        before_ms=old["median_ms"],
        after_ms=new["median_ms"],
        speedup=old["median_ms"] / new["median_ms"],
        speedup_range=(
            old["quartiles_ms"][0] / new["quartiles_ms"][1],
            old["quartiles_ms"][1] / new["quartiles_ms"][0],
        ),
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        for row in document["rows"]:
            low, high = row["quartiles_ms"]
            row["name"], row["batch"], low + row["median_ms"] + high + 0.0
        dict(document["machine"])
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no benchmark; make one: spt-deploy bench ... --json > RUN.json") from error
    return document  # type: ignore[no-any-return]
