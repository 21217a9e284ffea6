"""Draw the Mermaid blocks of these pages while the site is built.

GitHub draws ```mermaid blocks itself; a browser would have to fetch Mermaid from a CDN. Here Mermaid runs at build
time, so the pages need no script, and a diagram with a mistake fails the build.
"""

import html
import itertools
import re
from typing import Any

import mermaidx
from properdocs.exceptions import PluginError
from properdocs.structure.pages import Page

BLOCK = re.compile(r'<pre><code class="language-mermaid">(.*?)</code></pre>', re.DOTALL)
# Mermaid draws for a white page; the site has a dark mode as well.
FIGURE = '<figure style="background: white; padding: 1rem; text-align: center">{svg}</figure>'


def on_page_content(content: str, page: Page, **_: Any) -> str:
    """The page with every Mermaid block replaced by its drawing (an SVG element).

    Raises:
        PluginError: a block that Mermaid cannot read, by page and number.
    """
    numbers = itertools.count(1)

    def draw(block: re.Match[str]) -> str:
        number = next(numbers)
        try:
            svg = mermaidx.render(html.unescape(block[1])).svg()
        except RuntimeError as error:
            reason = str(error).removeprefix("Mermaid rendering failed: ")
            raise PluginError(f"{page.file.src_uri}: diagram {number} cannot be drawn: {reason}") from error
        # Every drawing calls itself "my-svg", and its style goes by that name.
        return FIGURE.format(svg=svg.replace("my-svg", f"diagram-{number}"))

    return BLOCK.sub(draw, content)
