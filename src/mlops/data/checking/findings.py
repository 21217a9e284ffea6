"""check.json: what a check found, as plain values."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

import mlops
from mlops.data.checking.copies import KINDS
from mlops.data.checking.facts import Facts
from mlops.data.checking.found import Found
from mlops.data.checking.likeness import MOST_DIFFERENT
from mlops.data.checking.neighbours import MOST_BITS
from mlops.data.checking.remarks import remarks
from mlops.data.checking.wrong import leaks, problems
from mlops.data.listing import SPLITS
from mlops.data.spread import histogram, spread

# Of each list: whoever has more mends these first.
_MOST_LISTED = 1000


def describe(found: Found) -> dict[str, Any]:
    """check.json. Lists end after a thousand; their counts do not."""
    listing, sides, facts, copies = found.listing, found.sides, found.facts, found.copies
    entries = listing.entries
    readable = facts.positions.tolist()
    counts = Counter((sides.split[p], entries[p].label) for p in readable)
    names = [split for split in SPLITS if split in (*sides.given, *sides.drawn)]
    if any(not sides.split[p] for p in readable):
        names.append("")
    values: dict[str, Any] = {
        "source": {"kind": found.config.source, "root": found.config.root or found.config.dataset},
        "images": len(entries),
        "readable": len(readable),
        "classes": listing.classes,
        "splits": {"given": sides.given, "drawn": sides.drawn, "seed": found.config.split.seed},
        # The split of what stands in none is empty.
        "counts": {s: {name: counts[s, label] for label, name in enumerate(listing.classes)} for s in names},
        "groups": {s: len({sides.group[p] for p in readable if sides.split[p] == s}) for s in names},
        "unreadable": {"count": len(facts.unreadable), "listed": facts.unreadable[:_MOST_LISTED]},
        "copies": _copies(found),
        "alike": {kind: _alike(found, copies.of[kind].tolist()) for kind in KINDS},
        "blank": {"count": len(copies.blank), "listed": [entries[p].path for p in copies.blank[:_MOST_LISTED]]},
        "compared": {"near hashes": copies.candidates, "looked at": copies.looked, "alike": len(copies.pairs)},
        "limits": {"bits of the hash": MOST_BITS, "difference": MOST_DIFFERENT},
        **_measures(facts),
    }
    values["leaking"] = {
        "pictures": len(copies.across(found.given())),
        "pairs": len(copies.of["leaks"]) if found.near_leaks else 0,
        "groups": len(sides.parted),
    }
    values |= {"leaks": leaks(found), "problems": problems(found), "remarks": remarks(found, values)}
    values |= {"version": mlops.__version__, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    return values


def _measures(facts: Facts) -> dict[str, Any]:
    if not len(facts.positions):
        return {"spread": {}, "histograms": {}}
    of = {
        "shorter side, pixels": np.minimum(facts.width, facts.height),
        "longer side, pixels": np.maximum(facts.width, facts.height),
        "width / height": facts.width / facts.height,
        "brightness, 0 to 255": facts.brightness,
        "contrast (standard deviation of brightness)": facts.contrast,
    }
    return {
        "spread": {name: spread(values) for name, values in of.items()},
        "histograms": {name: [list(one) for one in histogram(values)] for name, values in of.items()},
    }


def _copies(found: Found) -> dict[str, Any]:
    sets = found.copies.sets
    worst = found.copies.across(found.given()) + found.copies.across(found.labels())
    seen = {positions[0] for positions in worst}
    ordered = list({positions[0]: positions for positions in worst}.values())
    ordered += [positions for positions in sets if positions[0] not in seen]
    return {
        "count": len(sets),
        "extra": sum(len(positions) - 1 for positions in sets),
        # Of a picture that is there ten thousand times, some are enough.
        "listed": [[found.named(p) for p in positions[:20]] for positions in ordered[:_MOST_LISTED]],
    }


def _alike(found: Found, places: Sequence[int]) -> dict[str, Any]:
    listed = [
        {
            "difference": round(float(found.copies.difference[place]), 4),
            "pictures": [found.named(int(position)) for position in found.copies.pairs[place]],
        }
        for place in places[:_MOST_LISTED]
    ]
    return {"count": len(places), "listed": listed}
