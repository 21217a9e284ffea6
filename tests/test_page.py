import re

import numpy as np
from matplotlib.figure import Figure

from mlops import page
from samples import attributes


def test_a_page_is_one_file_that_fetches_nothing_and_runs_nothing():
    text = page.page("Report", "of a run", [("First part", "<p>body</p>"), ("Empty", "")])
    assert "<h2>First part</h2><p>body</p>" in text
    assert '<a href="#first-part">First part</a>' in text
    assert "Empty" not in text
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert not re.search(r"(src|href)=\"(?!#|data:)", text)


def test_what_comes_from_data_is_text_and_never_markup():
    evil = '<img src=x onerror="alert(1)">\x1b[2J'
    drawing = Figure()
    with page.drawing_style():
        drawing.subplots().set_title(evil, parse_math=False)
        parts = {
            "page": page.page(evil, evil, [(evil, "<p>body</p>")]),
            "tiles": page.tiles([(evil, evil)]),
            "table": page.table([evil], [[evil]]),
            "bars": page.bars([evil, evil], [(evil, [3])]),
            "pictures": page.pictures([(np.zeros((2, 2, 3), np.uint8), [evil, evil])], kind=evil),
            "block": page.block(f"{evil}\n{evil}"),
            "folded": page.folded(evil, page.block(evil)),
            "figure": page.figure(drawing, evil),
            "beside": page.beside([page.figure(drawing, evil), page.block(evil)]),
        }
    for name, part in parts.items():
        assert "alert(1)" in part, name  # it is shown, and as text
        assert "<img src=x" not in part, name
        assert not {found for found in attributes(part) if found.endswith(".onerror")}, name
        assert "\x1b" not in part, name


def test_a_figure_takes_the_ink_of_the_page_and_is_the_same_every_time():
    def draw() -> str:
        with page.drawing_style():
            drawing = Figure()
            drawing.subplots().set_title("A title")
            return page.figure(drawing, "What it shows")

    assert "currentColor" in draw()
    assert page.INK not in draw()
    assert ">A title</text>" in draw()
    assert draw() == draw()


def test_numbers_stand_to_the_right():
    assert page.table(["name", "n"], [["a", "1,234"], ["b", "5.1 %"]]).count('<td class="n">') == 2


def test_bars_are_as_long_as_their_counts_and_names_stay_text():
    found = page.bars(("class", "train", "val"), [("<b>a</b>", [60, 20]), ("c", [20, 0])])
    assert "&lt;b&gt;a&lt;/b&gt;" in found
    assert re.findall(r"width:([\d.]+)%", found) == ["75.00", "25.00", "25.00", "0.00"]
    assert found.count(page.BLUE) == 3  # the legend's and one a row
    assert '<td class="n">60</td><td class="n">20</td>' in found


def test_bars_of_nothing_are_a_table_of_nothing():
    assert "width:0.00%" in page.bars(("class", "images"), [("a", [0])])
    assert "<tbody></tbody>" in page.bars(("class", "images"), [])
