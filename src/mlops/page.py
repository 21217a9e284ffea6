"""Pages people look at: one self-contained HTML file, no script, no network, light and dark, readable on a phone.

Everything that comes from data (class names, paths, error texts) is escaped here.
"""

import base64
import html
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from mlops.errors import printable
from mlops.image import Pixels, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Figures are drawn in this colour, which no palette has; the page then puts in the text's own, light or dark.
INK = "#01fe02"
PICTURE_INK = "#1c2430"
BLUE, ORANGE = "#3b82f6", "#f08c2e"
PALETTE = (BLUE, ORANGE, "#12a594")
# A figure's text of 10 points is then 8.7 pixels high.
_SMALLEST = 0.65
# Letters in a cell of a table that is never broken.
_SHORT = 10

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6b7d; --paper: #fbfcfd; --card: #fff; --line: #dde3ea;
  --accent: #2563eb; --good: #15803d; --bad: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9f0; --soft: #9aa7b8; --paper: #11161d; --card: #181f29;
  --line: #2c3746; --accent: #7cb0ff; --good: #4ade80; --bad: #fb923c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { margin: .4rem 0 .8rem; max-width: 46rem; } .soft, figcaption, th { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .9rem; margin-top: .8rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
figure { margin: 1rem 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem;
  overflow-x: auto; } figure svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: .8rem;
  margin: 1rem 0; } .figures figure { margin: 0; min-width: 0; }
figcaption { font-size: .88rem; margin-top: .4rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; width: 100%; }
th, td { text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 500; white-space: nowrap; } td { overflow-wrap: anywhere; }
td:first-child { overflow-wrap: break-word; } td.s { white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: .8rem; }
.pictures div { font-size: .82rem; line-height: 1.35; overflow-wrap: anywhere; }
.pictures img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: .4rem; image-rendering: pixelated;
  background: var(--line); display: block; margin-bottom: .3rem; }
td:first-child { min-width: 3.4rem; } .bars td:first-child { min-width: 6.5rem; } .bars td:last-child { width: 45%; }
@media (max-width: 32rem) { .bars td:last-child { width: 25%; } }
.sheet { grid-template-columns: repeat(auto-fill, minmax(min(11rem, 46%), 1fr)); } .sheet img { image-rendering: auto; }
.bar { display: flex; height: .75rem; width: 100%; min-width: 2.5rem; margin-top: .4rem; } .bar i { display: block; }
th i { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .3rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem; overflow-x: auto;
  font: .84rem/1.45 ui-monospace, "SF Mono", Consolas, monospace; }
details { margin-top: .8rem; } details > summary { cursor: pointer; color: var(--accent); }
.good { color: var(--good); } .bad { color: var(--bad); }
"""


def page(title: str, lead: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole page. `title` and `lead` are text; of each section, the heading is text and the body is HTML."""
    sections = [(heading, body) for heading, body in sections if body]
    anchors = [re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") for heading, _ in sections]
    links = "".join(f'<a href="#{a}">{text(h)}</a>' for a, (h, _) in zip(anchors, sections, strict=True) if h)
    bodies = "".join(
        f'<section id="{a}">{f"<h2>{text(h)}</h2>" if h else ""}{body}</section>'
        for a, (h, body) in zip(anchors, sections, strict=True)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing is fetched and nothing runs, whatever a name in the data says.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><header><h1>{text(title)}</h1><p class="soft">{text(lead)}</p><nav>{links}</nav></header>'
        f"<main>{bodies}</main></body></html>\n"
    )


def text(value: Any) -> str:
    """Any value as text in HTML."""
    return html.escape(printable(str(value)))


def tiles(items: Iterable[tuple[str, str]]) -> str:
    """The few numbers that matter most: (what, value)."""
    cells = "".join(f'<div class="tile"><b>{text(value)}</b><span>{text(name)}</span></div>' for name, value in items)
    return f'<div class="tiles">{cells}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; columns that hold numbers only stand to the right. No header when all columns are unnamed."""
    rows = [list(row) for row in rows]
    right = [
        bool(rows) and all(re.fullmatch(r"[-+]?[\d,.]+ ?%?|", str(row[i])) for row in rows) for i in range(len(columns))
    ]
    short = [bool(rows) and all(len(str(row[i])) <= _SHORT for row in rows) for i in range(len(columns))]
    kind = [' class="n"' if n else ' class="s"' if s else "" for n, s in zip(right, short, strict=True)]
    header = "".join(f"<th{k}>{text(c)}</th>" for k, c in zip(kind, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{text(cell)}</td>" for k, cell in zip(kind, row, strict=True)) + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{header}</tr></thead>" if any(columns) else ""
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def bars(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[int]]]) -> str:
    """A table of counts, and of each row's counts one bar; `columns` are the heading of the names and of each count.

    The browser draws the bars, so that a thousand rows stay a table of text and a phone shows them as well.
    """
    rows = list(rows)
    longest = max((sum(counts) for _, counts in rows), default=0) or 1
    marks = "".join(
        f'<th class="n"><i style="background:{colour}"></i>{text(name)}</th>'
        for name, colour in zip(columns[1:], PALETTE, strict=False)
    )
    body = "".join(f"<tr><td>{text(name)}</td>{_counts(counts, longest)}</tr>" for name, counts in rows)
    head = f"<thead><tr><th>{text(columns[0])}</th>{marks}<th></th></tr></thead>"
    return f'<div class="scroll bars"><table>{head}<tbody>{body}</tbody></table></div>'


def _counts(counts: Sequence[int], longest: int) -> str:
    numbers = "".join(f'<td class="n">{count:,}</td>' for count in counts)
    parts = "".join(
        f'<i style="width:{100 * count / longest:.2f}%;background:{colour}"></i>'
        for count, colour in zip(counts, PALETTE, strict=False)
    )
    return f'{numbers}<td><div class="bar">{parts}</div></td>'


def pictures(items: Iterable[tuple[Pixels, Sequence[str]]], kind: str = "") -> str:
    """Images uint8 `[H, W, 3]`, each with lines of text below it, the first in bold.

    `kind="sheet"`: each shows many small ones.
    """
    cells = "".join(
        f'<div><img alt="{text(lines[0])}" src="data:image/png;base64,{base64.b64encode(png(pixels)).decode()}">'
        f"<b>{text(lines[0])}</b><br>{'<br>'.join(text(line) for line in lines[1:])}</div>"
        for pixels, lines in items
    )
    return f'<div class="pictures {text(kind)}">{cells}</div>'


def block(lines: str) -> str:
    """Text whose line breaks and indents matter: a command, a file."""
    escaped = "\n".join(text(line) for line in lines.splitlines())
    return f"<pre>{escaped}</pre>"


def folded(summary: str, body: str) -> str:
    """HTML that is shown when its summary is clicked."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def beside(figures: Iterable[str]) -> str:
    """Figures side by side where there is room, one below the other on a phone."""
    return f'<div class="figures">{"".join(figures)}</div>'


def figure(drawing: "Figure", caption: str) -> str:
    """A figure drawn within `drawing_style`, as a part of the page: sharp at any size, its text is text.

    It is never shown larger than drawn, and never so much smaller that its text is unreadable: then it scrolls.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Class names may be in any script; the browser has the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        # No date: the same run gives the same page.
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", svg[svg.index("<svg") :]).replace(INK, "currentColor")
    narrowest = round(drawing.get_figwidth() * 96 * _SMALLEST)
    svg = svg.replace("<svg", f'<svg style="min-width:{narrowest}px"', 1)
    return f'<figure role="img" aria-label="{text(caption)}">{svg}<figcaption>{text(caption)}</figcaption></figure>'


def drawing_style(ink: str = INK) -> AbstractContextManager[None]:
    """matplotlib's settings for figures of a page: its ink becomes the page's, its text stays text.

    The same figure as a picture of its own, on white, is drawn with `PICTURE_INK`.
    """
    import matplotlib as mpl

    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = dict.fromkeys(inked, ink)
    settings |= {"svg.fonttype": "none", "svg.hashsalt": "mlops", "font.family": "sans-serif", "font.size": 10.0}
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#8894a4", "grid.alpha": 0.3}
    return mpl.rc_context(settings)
