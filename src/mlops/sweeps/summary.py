"""What a sweep leaves for a person: one page, a table of all trials, and the command that repeats the best one."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops import page, tables
from mlops.files import write_text
from mlops.sweeps.live import duration, number, settings, short_names
from mlops.sweeps.parameters import Choice, Integers, Parameter, Range
from mlops.sweeps.plots import figures
from mlops.sweeps.refit import Refitted
from mlops.sweeps.space import Space
from mlops.sweeps.trials import Row

PAGE, TABLE = "index.html", "trials.csv"


@dataclass(frozen=True)
class Summary:
    """A sweep that is over: its name, what it searched, its trials, the best, and the command that repeats that one."""

    name: str
    space: Space
    rows: Sequence[Row]
    best: Row
    refitted: Refitted | None
    command: str

    def write(self, folder: Path) -> Path:
        """Write `index.html` and `trials.csv` into the folder of the sweep. Returns the page."""
        write_text(folder / TABLE, _as_csv(self.space, self.rows))
        sections = [
            ("", page.tiles(self._tiles())),
            ("The best trial", self._best()),
            ("Plots", figures(self.space, self.rows)),
            ("All trials", self._table()),
            ("What went wrong", _failures(self.rows)),
            ("The search", _search(self.space)),
        ]
        lead = f"{len(self.rows)} trials of {self.space.path}, by {self.space.method}"
        write_text(folder / PAGE, page.page(f"Sweep {self.name}", lead, sections))
        return folder / PAGE

    def show(self, written: Path) -> None:
        """The end of a sweep on a terminal; `written` is its page."""
        states = [row.state for row in self.rows]
        best = self.best
        pairs: list[tuple[str, Any]] = [
            ("trials", ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))),
            (
                "best",
                f"trial {best.number}, {self.space.metric} {number(best.value)}, epoch {best.metrics['epoch']:.0f}",
            ),
            ("tried", settings(best.values)),
        ]
        if "test_Accuracy" in best.metrics:
            pairs.append(("test accuracy", f"{best.metrics['test_Accuracy']:.2%}"))
        if self.refitted is not None:
            pairs.append(("with other seeds", _spread(self.space, self.refitted)))
        pairs += [("run folder", best.folder), ("page", written), ("repeat it", self.command)]
        tables.pairs("Sweep", pairs)

    def _tiles(self) -> list[tuple[str, str]]:
        best, refitted = self.best, self.refitted
        found = [(f"{self.space.metric}, trial {best.number}", number(best.value))]
        if "test_Accuracy" in best.metrics:
            found.append(("test accuracy", f"{best.metrics['test_Accuracy']:.2%}"))
        if refitted is not None and refitted.values:
            found.append(
                (f"mean of {len(refitted.values)} other seeds", f"{refitted.mean:.4g} ± {refitted.spread:.2g}")
            )
        for state, words in (("complete", "trials in full"), ("stopped", "stopped early")):
            if count := sum(row.state == state for row in self.rows):
                found.append((words, str(count)))
        found.append(("of all trials together", duration(sum(row.seconds for row in self.rows))))
        return found

    def _best(self) -> str:
        best = self.best
        lines = [(name, number(value)) for name, value in best.values.items()]
        lines.append(("run folder", f"{best.folder}{'' if best.ours else f' on {best.host}'}"))
        note = ""
        if self.refitted is not None:
            lines.append(("trained again", _spread(self.space, self.refitted)))
        else:
            note = (
                '<p class="soft">The best of many is partly the luckiest: with <code>-o sweep.refit=5</code> the same '
                "command trains it again with five other seeds.</p>"
            )
        return page.table(("", ""), lines) + page.block(_on_lines(self.command)) + note

    def _table(self) -> str:
        names = list(self.space.searched)
        columns = ("trial", *short_names(names), self.space.metric, "state", "epochs", "seconds", "run folder")
        body = [
            [
                f"{row.number}{' (best)' if row.number == self.best.number else ''}",
                *(number(row.values.get(name, "")) for name in names),
                "" if row.value is None else number(row.value),
                row.state,
                str(row.epochs),
                f"{row.seconds:.1f}",
                str(row.folder),
            ]
            for row in sorted(self.rows, key=lambda row: _rank(self.space, row))
        ]
        return page.table(columns, body)


def _on_lines(command: str) -> str:
    """A command with a line for each override: a shell takes it as one."""
    return re.sub(r" (?=[+~\"']*[\w.]+=)", " \\\n  ", command)


def _spread(space: Space, refitted: Refitted) -> str:
    if not refitted.values:
        return f"none of {refitted.failed} came to its end"
    text = f"{space.metric} {refitted.mean:.4f} ± {refitted.spread:.4f} over {len(refitted.values)} other seeds"
    if refitted.tests:
        text += f", test accuracy {sum(refitted.tests) / len(refitted.tests):.2%}"
    return text + (f"; {refitted.failed} failed" if refitted.failed else "")


def _rank(space: Space, row: Row) -> tuple[int, float, int]:
    order = ("complete", "stopped", "running", "diverged", "failed")
    value = row.value if row.value is not None and math.isfinite(row.value) else 0.0
    return order.index(row.state), -value if space.maximize else value, row.number


def _failures(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if row.failure]
    return "".join(page.folded(f"trial {row.number}: {row.state}", page.block(row.failure)) for row in failed)


def _search(space: Space) -> str:
    lines: list[tuple[str, str]] = [(name, _in_words(kind)) for name, kind in space.parameters.items()]
    if space.early_stop is not None:
        stop = space.early_stop
        lines.append(
            (
                "early_terminate",
                f"after {stop.first}, {stop.first * stop.factor}, ... epochs the best 1/{stop.factor} go on",
            )
        )
    return page.table(("", ""), lines)


def _in_words(kind: Parameter) -> str:
    match kind:
        case Choice(values, None):
            return f"one of {', '.join(map(number, values))}"
        case Choice(values, shares):
            return f"one of {', '.join(f'{number(v)} ({s:.0%})' for v, s in zip(values, shares or (), strict=True))}"
        case Range(low, high, log):
            return f"{number(low)} to {number(high)}{', by its logarithm' if log else ''}"
        case Integers(low, high):
            return f"{low} to {high}, integers"
        case _:
            return str(kind).partition("(")[2].rstrip(")")


def _as_csv(space: Space, rows: Sequence[Row]) -> str:
    text = io.StringIO()
    metrics = sorted({name for row in rows for name in row.metrics} - {space.metric})
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", *space.searched, space.metric, "epochs", "seconds", "folder", "host", *metrics])
    for row in rows:
        told: Mapping[str, float] = row.metrics
        writer.writerow(
            [
                row.number,
                row.state,
                *(row.values.get(name, "") for name in space.searched),
                row.value,
                row.epochs,
                round(row.seconds, 3),
                row.folder,
                row.host,
                *(told.get(name, "") for name in metrics),
            ]
        )
    return text.getvalue()
