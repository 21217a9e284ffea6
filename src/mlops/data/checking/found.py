"""All that is known of a source, before it is put in words."""

from dataclasses import dataclass

from mlops.config import DataConfig
from mlops.data.checking.copies import Copies
from mlops.data.checking.facts import Facts
from mlops.data.checking.sides import Sides, given_side
from mlops.data.listing import Listing


@dataclass(frozen=True)
class Found:
    """A source, the splits of its images, what they look like, and which are alike."""

    config: DataConfig
    listing: Listing
    sides: Sides
    facts: Facts
    copies: Copies
    # Whether near-copies in two splits of the source are leaks.
    near_leaks: bool = True

    @property
    def where(self) -> str:
        return self.listing.tree.label

    def named(self, position: int) -> dict[str, str]:
        entry = self.listing.entries[position]
        return {
            "path": entry.path,
            "class": self.listing.classes[entry.label],
            "split": self.sides.split[position],
            "group": entry.group,
        }

    def given(self) -> list[str]:
        return [given_side(entry) for entry in self.listing.entries]

    def labels(self) -> list[int]:
        return [entry.label for entry in self.listing.entries]


def many(count: int, what: str) -> str:
    """`1 pair`, `2 pairs`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
