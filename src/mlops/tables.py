"""What a person reads at the end of a command, on standard output."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from mlops.data.prepare import Prepared

out = Console(highlight=False, markup=False, emoji=False)


def pairs(title: str, rows: Iterable[tuple[str, Any]]) -> None:
    """A titled list of name and value."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, str(value))
    out.print(table)


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A titled table with a header; all columns but the first are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="cyan")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    out.print(table)


def show_prepared(prepared: "Prepared") -> None:
    """Where the prepared data is and what it holds."""
    manifest: Mapping[str, Any] = prepared.manifest
    counts = manifest["counts"]
    skipped = manifest["skipped"]
    pairs(
        "Prepared data",
        [
            ("folder", prepared.folder),
            ("classes", len(manifest["classes"])),
            *((split, f"{sum(counts[split].values()):,} images") for split in counts),
            ("image size", f"{manifest['image_size']} x {manifest['image_size']}"),
            ("skipped", f"{len(skipped)} unreadable" if skipped else "none"),
        ],
    )
