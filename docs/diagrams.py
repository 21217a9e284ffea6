"""Draw the Mermaid blocks of these pages while the site is built.

GitHub draws ```mermaid blocks itself; a browser would have to fetch Mermaid from a CDN. Here Mermaid runs at build
time, so the pages need no script, and a diagram with a mistake fails the build.
"""

import html
import itertools
import re
from typing import Any

import mermaidx

BLOCK = re.compile(r'<pre><code class="language-mermaid">(.*?)</code></pre>', re.DOTALL)
# Mermaid draws for a white page; the site has a dark mode as well.
FIGURE = '<figure style="background: white; padding: 1rem; text-align: center">{svg}</figure>'


def on_page_content(content: str, **_: Any) -> str:
    """The page with every Mermaid block replaced by its drawing (an SVG element)."""
    numbers = itertools.count(1)

    def draw(block: re.Match[str]) -> str:
        # Every drawing calls itself "my-svg", and its style goes by that name.
        svg = mermaidx.render(html.unescape(block[1])).svg().replace("my-svg", f"diagram-{next(numbers)}")
        return FIGURE.format(svg=svg)

    return BLOCK.sub(draw, content)
