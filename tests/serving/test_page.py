"""The page at /, in a real browser where there is one: what people do, what they see, and what is said to them."""

import json
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mlops.image import png
from mlops.serving.keys import new_key
from mlops.serving.page import PATHS
from samples import ROOT
from serving.browser import CHROMIUM, Browser
from serving.models import write_model
from serving.server import Server

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium")

FOLDER = ROOT / "src" / "mlops" / "serving" / "page"
RED, BLUE = (220, 10, 10), (10, 10, 220)


def picture(path: Path, colour: tuple[int, int, int] = RED, size: int = 40) -> Path:
    path.write_bytes(png(np.full((size, size, 3), colour, np.uint8)))
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium") / "profile") as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """A browser that has forgotten all, and complains of nothing in the end but what a test expects."""
    chromium.expected = ""
    chromium.show(1200, 900)
    chromium.call("Page.navigate", url="about:blank")
    chromium.events.clear()
    chromium.complaints.clear()
    yield chromium
    chromium.js("0")  # what has been complained of until now, arrives before its answer
    assert [found for found in chromium.complaints if not re.search(chromium.expected or "(?!)", found)] == []


@pytest.fixture
def page(browser: Browser, served: Server) -> Browser:
    """The page of the server that all tests share, with its models shown."""
    return opened(browser, served)


def opened(browser: Browser, server: Server, models: str = "#models article") -> Browser:
    browser.open(f"{server.url}/")
    browser.wait(f"document.querySelector('{models}') !== null")
    return browser


def answered(browser: Browser, pictures: int = 1) -> None:
    done = "!document.querySelector('.waiting') && !document.querySelector('h3.soft')"
    browser.wait(f"document.querySelectorAll('.picture').length == {pictures} && {done}")


EVIL = '<img src=x onerror="document.title=1">'
LONG = ["word_" * 40, "many words in a name " * 10, "red", "شارع مسدود", *[f"n{number:05d}" for number in range(996)]]
MADE: dict[str, object] = {
    "checkpoint": "0123456789abcdef" * 4,
    "created": "2026-11-26T17:57:25+00:00",
    "metrics": {"test_Accuracy": 0.98765, "val_Accuracy": 0.5, "epoch": 14, "odd": [1]},
    "data": {"name": "signs", "counts": {"train": 1000, "val": 200, "test": 34}, "fingerprint": "fc8e9604"},
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of models with much to tell, with names that are markup, and with names that are long."""
    folder = tmp_path_factory.mktemp("odd")
    write_model(folder / "made.onnx", size=48, metadata=MADE)
    evil = {"data": {"name": EVIL}, "created": EVIL, "checkpoint": EVIL, "metrics": {EVIL: 1.5, "test_Accuracy": EVIL}}
    write_model(folder / "evil.onnx", [EVIL, "green", "red"], metadata=evil)
    write_model(folder / "long.onnx", LONG, metadata={"data": {"name": "x" * 200}, "checkpoint": "f" * 64})
    with Server(folder, ("made=made.onnx", "evil=evil.onnx", f"{'m' * 64}=long.onnx")) as server:
        yield server


# What needs no browser.


@pytest.mark.parametrize("path", sorted(PATHS))
def test_files_of_the_page_run_nothing_of_others_and_are_sent_again_only_when_they_changed(path: str, served: Server):
    answer = served.get(path)
    assert answer.status == 200
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    tag = answer.headers["ETag"]
    for held in (tag, f"W/{tag}", f'"other", {tag}'):
        again = served.get(path, **{"If-None-Match": held})
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag)
    assert served.get(path, **{"If-None-Match": '"other"'}).status == 200
    assert served.ask("HEAD", path).headers["Content-Length"] == str(len(answer.body))


def test_the_page_names_only_files_that_are_served_and_has_no_script_and_style_of_its_own(served: Server):
    text = served.get("/").body.decode()
    named = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert {name for name in named if name.startswith("page/")} == {path[1:] for path in PATHS if path != "/"}
    assert {name for name in named if not name.startswith("page/")} == {"docs", "models"}
    assert not re.search(r"<style|style=|<script[^>]*>[^<]| on\w+=", text)
    for path in PATHS:
        assert b"http" not in served.get(path).body.replace(b"http://www.w3.org/2000/svg", b"").replace(
            b"https only", b""
        )
    for imported in re.findall(
        r'from "\./([\w.]+)"', "".join((FOLDER / name[6:]).read_text() for name in PATHS if name.endswith(".js"))
    ):
        assert f"/page/{imported}" in PATHS


@pytest.mark.parametrize("path", ["/page", "/page/", "/page/index.html", "/page/__init__.py", "/page/..%2f__init__.py"])
def test_nothing_else_of_the_folder_is_served(path: str, served: Server):
    assert served.get(path).status == 404


def test_the_log_and_the_metrics_know_the_page_by_two_names(served: Server):
    served.get("/", **{"X-Request-ID": "page-1"})
    served.get("/page/style.css", **{"X-Request-ID": "page-2"})
    routes: dict[str, str] = {}
    end = time.monotonic() + 20
    while len(routes) < 2 and time.monotonic() < end:
        routes = {line["id"]: line["route"] for line in served.lines() if line.get("id") in {"page-1", "page-2"}}
    assert routes == {"page-1": "/", "page-2": "/page"}


def test_the_wheel_and_the_image_hold_every_file_of_the_page(tmp_path: Path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = {path.name for path in FOLDER.iterdir() if path.is_file()}
    inside = zipfile.ZipFile(wheel).namelist()
    assert files == {name.rsplit("/", 1)[1] for name in inside if name.startswith("mlops/serving/page/")}
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kinds = {Path(name).suffix for name in files} - {".py"}
    assert {f"!src/mlops/serving/page/*{kind}" for kind in kinds} <= {*let_in}


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme: int):
    blocks = re.findall(r":root \{(.*?)\}", (FOLDER / "style.css").read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", blocks[scheme]))

    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light(colours[one]), light(colours[other])))
        return (high + 0.05) / (low + 0.05)

    for behind in ("paper", "card"):
        for text in ("ink", "soft", "accent", "bad"):
            assert contrast(text, behind) >= 4.5, (text, behind)
        assert contrast("edge", behind) >= 3
    assert contrast("on-accent", "accent") >= 4.5


# What people do.


@in_browser
def test_a_dropped_picture_is_named_by_every_model_with_bars_and_times(page: Browser, served: Server, tmp_path: Path):
    page.drop(picture(tmp_path / "stop.png"), until="dragOver")
    page.wait("document.querySelector('#drop').classList.contains('over')")
    page.drop(picture(tmp_path / "stop.png"))
    answered(page)
    assert page.js("document.querySelector('#drop').classList.contains('over')") is False
    columns = page.js("[...document.querySelectorAll('.answer h4 bdi')].map((node) => node.textContent)")
    assert columns == ["colours", "digits", "others", "mean", "weighted"]  # the default first
    assert page.text(".verdict h3") == "red"
    assert re.match(r"4 of 5 say so, [\d.]+% to 100.0% sure; answered within [\d.]+ m?s$", page.text(".verdict p"))

    told = served.send("/models/others/predict?top=5", ("stop.png", (tmp_path / "stop.png").read_bytes())).json
    rows = [f"{choice['class']} {100 * choice['probability']:.1f}%" for choice in told["predictions"][0]["top"]]
    others = "[...document.querySelectorAll('.answer')][2]"
    assert (
        page.js(f"[...{others}.querySelectorAll('li')].map((row) => row.innerText.replace(/\\s+/g, ' ').trim())")
        == rows
    )
    widths = page.js(f"[...{others}.querySelectorAll('i')].map((bar) => bar.offsetWidth / bar.parentNode.offsetWidth)")
    assert widths == pytest.approx([choice["probability"] for choice in told["predictions"][0]["top"]], abs=0.02)
    times = page.js("[...document.querySelectorAll('.answer h4 span')].map((node) => node.textContent)")
    assert all(re.fullmatch(r"[\d.]+ m?s", time) for time in times)
    assert "stop.png\n40 × 40, " in page.text("figcaption")
    assert page.js("document.querySelector('.picture img').src.startsWith('blob:')") is True


@in_browser
def test_nothing_is_asked_of_anybody_but_this_server(page: Browser, served: Server, tmp_path: Path):
    page.choose("#files", picture(tmp_path / "a.png"))
    answered(page)
    requested = page.requested()
    assert sum("/predict?top=5" in url for url in requested) == 5
    assert [url for url in requested if not url.startswith(f"{served.url}/")] == []


@in_browser
def test_several_chosen_pictures_are_answered_each_for_itself_and_cleared_together(page: Browser, tmp_path: Path):
    page.choose("#files", picture(tmp_path / "r.png", RED), picture(tmp_path / "b.png", BLUE))
    answered(page, 2)
    assert page.js("[...document.querySelectorAll('.verdict h3')].map((node) => node.innerText)") == ["red", "blue"]
    page.choose("#files", picture(tmp_path / "r.png", BLUE))  # the same name again
    answered(page, 3)
    assert page.text(".verdict h3") == "blue"
    page.js("document.querySelector('#clear').click()")
    assert page.js("document.querySelector('#results').hidden") is True
    assert page.js("document.activeElement.id") == "files"


@in_browser
def test_an_answer_that_is_less_likely_than_not_is_no_more_than_perhaps(page: Browser, tmp_path: Path):
    page.choose("#files", picture(tmp_path / "grey.png", (127, 127, 127)))
    answered(page)
    assert page.text(".verdict h3") == "Perhaps blue"
    page.sees("grey.png: Perhaps blue. ", "#said")
    page.choose("#files", picture(tmp_path / "blue.png", BLUE))
    answered(page, 2)
    assert page.text(".verdict h3") == "blue"


@in_browser
def test_files_over_the_page_show_that_they_may_be_dropped_wherever_it_is_scrolled_to(page: Browser, tmp_path: Path):
    page.show(1200, 300)
    page.js("scrollTo(0, document.body.scrollHeight)")
    page.wait("document.querySelector('#drop').getBoundingClientRect().bottom < 0")
    frame = "getComputedStyle(document.querySelector('#drop'), '::after')"
    assert page.js(f"{frame}.content") == "none"
    page.drop(picture(tmp_path / "a.png"), until="dragOver")
    page.wait(f"{frame}.position == 'fixed'")
    assert page.js(f"[{frame}.inset, {frame}.borderTopStyle, {frame}.pointerEvents]") == ["0px", "solid", "none"]
    page.drop(picture(tmp_path / "a.png"))
    answered(page)
    assert page.js(f"{frame}.content") == "none"


@in_browser
def test_a_copied_picture_is_pasted(page: Browser):
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.call("Page.bringToFront")
    page.call("Emulation.setFocusEmulationEnabled", enabled=True)
    page.js("""(async () => {
        const canvas = new OffscreenCanvas(30, 30), paint = canvas.getContext("2d");
        paint.fillStyle = "rgb(10, 10, 220)";
        paint.fillRect(0, 0, 30, 30);
        const blob = await canvas.convertToBlob({ type: "image/png" });
        await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
    })()""")
    page.press("v", control=True, commands=("paste",))
    answered(page)
    assert page.text(".verdict h3") == "blue"
    assert "30 × 30" in page.text("figcaption")


@in_browser
def test_more_pictures_than_fit_are_left_out_and_it_is_said(page: Browser, tmp_path: Path):
    page.js("[...document.querySelectorAll('#asked input')].slice(1).forEach((box) => box.click())")
    page.choose("#files", *[picture(tmp_path / f"{number}.png", size=4) for number in range(26)])
    answered(page, 24)
    assert page.text("#drop-wrong").startswith("2 pictures left out: 24 at once are shown")


@in_browser
def test_a_file_that_is_no_picture_is_refused_in_the_servers_words_and_the_others_are_answered(
    page: Browser, served: Server, tmp_path: Path
):
    page.expected = "415|blob:"
    wrong = tmp_path / "notes.png"
    wrong.write_text("no picture")
    (tmp_path / "folder").mkdir()
    page.drop(wrong, picture(tmp_path / "right.png"), tmp_path / "folder")
    answered(page, 3)
    detail = served.send("/predict", ("notes.png", wrong.read_bytes())).json["detail"]
    cards = page.js("[...document.querySelectorAll('.picture')].map((node) => node.innerText)")
    assert cards[0].count(detail) == 1  # not once for every model
    assert "No answer" in cards[0]
    assert "No preview" in cards[0]
    assert "Try again" not in cards[0]  # it would be refused again
    assert "\nred\n" in cards[1]
    assert "folder: cannot be read; it is a folder, or has been moved" in cards[2]
    page.sees(f"notes.png: no answer. {detail}", "#said")


@in_browser
def test_a_picture_beyond_the_limit_is_refused_with_a_reason(page: Browser, tmp_path: Path):
    page.expected = "413|ERR_"
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    (tmp_path / "large.png").write_bytes(png(noise))
    page.choose("#files", tmp_path / "large.png")
    answered(page)
    assert "No answer" in page.text(".verdict")
    # Whether the answer or the end of the connection arrives first, is up to the network.
    assert re.search(r"more than 1,000,000 bytes|too large", page.text(".picture"))


@in_browser
def test_without_a_connection_it_says_so_and_tries_again_when_asked(page: Browser, tmp_path: Path):
    page.expected = "ERR_INTERNET_DISCONNECTED"
    offline(page, True)
    page.choose("#files", picture(tmp_path / "a.png"))
    page.sees("The server does not answer.", ".verdict")
    offline(page, False)
    page.js("document.querySelector('.verdict button').click()")
    answered(page)
    assert page.text(".verdict h3") == "red"
    assert page.js("document.activeElement.className") == "card picture"  # the button is gone; the keyboard is near


def offline(browser: Browser, on: bool) -> None:
    browser.call("Network.emulateNetworkConditions", offline=on, latency=0, downloadThroughput=-1, uploadThroughput=-1)


@in_browser
def test_a_server_that_is_gone_is_told_in_place(browser: Browser, tmp_path: Path):
    write_model(tmp_path / "colours.onnx")
    browser.expected = "ERR_CONNECTION_REFUSED"
    with Server(tmp_path, ("colours.onnx",)) as server:
        opened(browser, server)
        browser.choose("#files", picture(tmp_path / "a.png"))
        answered(browser)
    browser.choose("#files", picture(tmp_path / "b.png"))
    browser.sees("The server does not answer.", ".verdict")
    assert "red" in browser.js("document.querySelectorAll('.verdict')[1].innerText")  # what was answered, stays


@in_browser
def test_models_that_could_not_be_asked_for_are_asked_for_again(browser: Browser, served: Server, tmp_path: Path):
    browser.expected = "ERR_BLOCKED_BY_CLIENT|ERR_FAILED"
    browser.call("Network.setBlockedURLs", urlPatterns=[{"urlPattern": f"{served.url}/models", "block": True}])
    browser.open(f"{served.url}/")
    browser.sees("The server does not answer.", "#models")
    browser.choose("#files", picture(tmp_path / "early.png"))
    browser.sees("Waits for a model", ".verdict")
    browser.call("Network.setBlockedURLs", urlPatterns=[])
    browser.js("document.querySelector('#models button').click()")
    answered(browser)
    assert browser.text(".verdict h3") == "red"


@in_browser
def test_a_server_without_a_model_says_why_and_what_to_do(browser: Browser, tmp_path: Path):
    with Server(tmp_path, (), wait=False) as server:
        browser.open(f"{server.url}/")
        browser.sees("Not ready: models/latest/model.onnx: no such file; make one with: mlops export", "#models")
        browser.choose("#files", picture(tmp_path / "a.png"))
        browser.sees("No model here takes pictures now", "#drop-wrong")


@in_browser
def test_models_that_are_not_chosen_are_not_asked(page: Browser, tmp_path: Path):
    page.js("[...document.querySelectorAll('#asked input')].slice(2).forEach((box) => box.click())")
    page.choose("#files", picture(tmp_path / "a.png"))
    answered(page)
    assert page.js("[...document.querySelectorAll('.answer h4 bdi')].map((node) => node.innerText)") == [
        "colours",
        "digits",
    ]
    assert page.text(".verdict p").startswith("1 of 2 say so, ")
    page.js("[...document.querySelectorAll('#asked input')].slice(1, 3).forEach((box) => box.click())")
    page.choose("#files", picture(tmp_path / "c.png"))
    answered(page, 2)
    assert page.text(".verdict p").startswith("Both agree, ")
    page.js("[...document.querySelectorAll('#asked input')].slice(1, 3).forEach((box) => box.click())")
    page.js("[...document.querySelectorAll('#asked input')].slice(0, 2).forEach((box) => box.click())")
    page.choose("#files", picture(tmp_path / "b.png"))
    page.sees("Choose at least one model to ask.", "#drop-wrong")


@in_browser
def test_a_card_tells_how_a_model_was_made(browser: Browser, odd: Server):
    opened(browser, odd)
    facts = browser.text("#models dl").replace("\n", " ")
    assert facts == (
        "Classes 3 Input 48 × 48, squeezed Accuracy 98.77% on test data Data signs, 1,234 images "
        "Made (UTC) 2026-11-26 17:57 Checkpoint 0123456789ab"
    )
    browser.js("document.querySelector('#models details').open = true")
    more = browser.text("#models details")
    sha256 = odd.get("/models").json["models"][0]["sha256"]
    for part in (sha256, "0123456789abcdef" * 4, "fc8e9604", "test_Accuracy\n0.9877", "epoch\n14", "blue", "red"):
        assert part in more
    assert "odd" not in more


@in_browser
def test_a_model_of_numbers_has_a_form(page: Browser):
    form = "document.querySelector('.numbers')"
    page.js(f"[...{form}.querySelectorAll('input')].slice(1).forEach((field) => (field.value = '0.5'))")
    page.js(f"{form}.requestSubmit()")
    page.sees("Number 1: needs a number.")
    assert page.js("document.activeElement.id") == "numbers-0"
    assert page.invalid() == ["Number 1"]
    page.js("document.activeElement.value = '-1.5e0'")
    page.js(f"{form}.requestSubmit()")
    page.wait(f"{form}.nextElementSibling.querySelector('li') !== null")
    assert page.js(f"{form}.nextElementSibling.innerText").startswith("no\n50.0%")
    assert page.invalid() == []
    assert '{"features":[[-1.5,0.5,0.5,0.5]]}' in page.js(f"{form}.nextElementSibling.textContent")


@in_browser
def test_the_curl_command_does_what_the_page_did(page: Browser, served: Server, tmp_path: Path):
    page.choose("#files", picture(tmp_path / "my sign (1).png"))
    answered(page)
    page.js("document.querySelector('.picture details').open = true")
    lines = page.text(".picture pre").splitlines()
    assert len(lines) == 5
    shown = page.js("document.querySelector('.answer .bars').innerText").split("\n")[0]
    done = subprocess.run(["sh", "-c", f"{lines[0]} -s"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["predictions"][0]["class"] == shown == "red"
    page.js("document.querySelector('.picture pre + button').click()")
    page.sees("Copied", ".picture details")


@in_browser
def test_names_are_text_whatever_they_say(browser: Browser, odd: Server, tmp_path: Path):
    name = "';curl x|sh;'<b>$(id).png"
    opened(browser, odd)
    browser.choose("#files", picture(tmp_path / name, BLUE))
    answered(browser)
    assert browser.js("document.querySelectorAll('.answer')[1].querySelector('li bdi').innerText") == EVIL
    assert name in browser.text("figcaption")
    assert browser.js("document.querySelectorAll('main b:not(.bars b), main img:not(figure img)').length") == 0
    assert "file=@PICTURE" in browser.js("document.querySelector('.picture pre').textContent")
    assert browser.js("document.title") == "What is on this picture?"
    # Where a text did get into markup, the browser itself would refuse.
    assert (
        browser.js("(() => { try { document.body.innerHTML = '<b>x</b>'; } catch { return 'refused'; } })()")
        == "refused"
    )
    browser.expected = "TrustedType|TrustedHTML"


# Keys.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server that asks for a key, and the key, which may be used three times a second."""
    folder = tmp_path_factory.mktemp("guarded")
    write_model(folder / "colours.onnx")
    key, line = new_key("alice")
    (folder / "keys.txt").write_text(f"{line}\n")
    (folder / "serve.yaml").write_text("models: {colours: colours.onnx}\nkeys: {file: keys.txt, rate: 3, burst: 2}\n")
    with Server(folder, ("--config", "serve.yaml")) as server:
        yield server, key


def test_the_page_is_open_to_those_without_a_key_and_nothing_behind_it_is(guarded: tuple[Server, str]):
    server, _ = guarded
    assert {server.get(path).status for path in PATHS} == {200}
    assert server.get("/models").status == 401
    assert server.get("/page/other.js").status == 401


@in_browser
def test_a_key_is_asked_for_and_kept_in_this_tab_only(browser: Browser, guarded: tuple[Server, str], tmp_path: Path):
    browser.expected = "401|429"
    server, key = guarded
    browser.open(f"{server.url}/")
    browser.sees("This server asks for a key")
    browser.wait("document.activeElement.id == 'key'")
    assert browser.text("#key-wrong") == ""  # nothing was wrong yet
    assert "told to those who have a key" in browser.text("#models")
    browser.choose("#files", picture(tmp_path / "early.png"))  # answered once there is a key
    browser.js("document.querySelector('#key').focus()")

    def give(word: str) -> None:
        browser.js("document.querySelector('#key').value = ''")
        browser.call("Input.insertText", text=word)
        browser.press("Enter")

    assert browser.invalid() == []
    give("schlüssel")
    browser.sees("A key has no spaces and no such letters.", "#key-wrong")
    assert browser.invalid() == ["This server asks for a key"]
    give("wrong")
    detail = server.ask("GET", "/models", headers={"Authorization": "Bearer wrong"}).json["detail"]
    browser.sees(detail, "#key-wrong")
    assert browser.invalid() == ["This server asks for a key"]
    give(key)
    browser.wait("document.querySelector('#lock').hidden && document.querySelector('#models article')")
    answered(browser)
    assert browser.text(".verdict h3") == "red"  # also where the key has asked too often: it is asked again, later
    assert browser.js("[sessionStorage.length, localStorage.length]") == [1, 0]
    assert browser.call("Network.getCookies")["cookies"] == []
    assert browser.js("document.querySelector('#key').value") == ""
    assert key not in browser.js("document.documentElement.outerHTML")
    assert '-H "Authorization: Bearer $KEY"' in browser.js("document.querySelector('.picture pre').textContent")

    opened(browser, server)  # it is kept when the page is loaded again
    browser.js("document.querySelector('#forget').click()")
    browser.sees("This server asks for a key")
    assert browser.js("sessionStorage.length") == 0


# Without a mouse, without sight, on a small screen.


@in_browser
def test_everything_is_done_by_keyboard_alone(page: Browser, tmp_path: Path):
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    page.tab_to("#files")
    assert page.js("getComputedStyle(document.querySelector('label[for=files]')).outlineStyle") == "solid"
    page.press("Enter")
    page.wait("1")
    (opening,) = [event["params"] for event in page.events if event["method"] == "Page.fileChooserOpened"]
    page.call("DOM.setFileInputFiles", files=[str(picture(tmp_path / "a.png"))], backendNodeId=opening["backendNodeId"])
    page.call("Page.setInterceptFileChooserDialog", enabled=False)
    answered(page)
    page.tab_to("#asked label:nth-of-type(2) input")
    page.press(" ")
    assert page.js("document.activeElement.checked") is False
    page.tab_to(".picture summary")
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    page.wait("document.querySelector('.picture details').open")
    page.tab_to(".picture pre + button")
    page.tab_to("#models summary")
    page.tab_to("#numbers-0")


@in_browser
def test_a_screen_reader_is_told_what_everything_is_and_what_came_out(page: Browser, tmp_path: Path):
    page.show(390, 844, touch=True)
    page.choose("#files", picture(tmp_path / "a.png"))
    answered(page)
    page.js("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    controls = page.controls()
    assert [role for role, name in controls if not name.strip()] == []
    assert {("button", "Choose pictures"), ("button", "Take a photo"), ("checkbox", "digits")} <= {*controls}
    assert ("textbox", "Number 1") in controls
    assert page.js("document.querySelector('#said').getAttribute('role')") == "status"
    assert re.search(r"a\.png: red\. 4 of 5 say so, [\d.]+% to 100\.0% sure", page.text("#said"))
    assert page.js("document.querySelector('.picture img').alt") == "The picture a.png"
    levels = page.js("[...document.querySelectorAll('h1, h2, h3, h4')].map((node) => Number(node.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.js("document.documentElement.lang") == "en"


@in_browser
@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_nothing_is_wider_than_the_screen_however_long_names_are(
    browser: Browser, width: int, odd: Server, tmp_path: Path
):
    opened(browser, odd)
    browser.show(width, 800, touch=width < 500)
    browser.choose("#files", picture(tmp_path / f"{'long' * 50}.png"))
    answered(browser)
    browser.js("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    assert browser.js("document.documentElement.scrollWidth") == width
    over = "[...document.querySelectorAll('main *')].filter((n) => n.closest('pre, .away') === null && n.getBoundingClientRect().right > innerWidth + 1).map((n) => n.outerHTML.slice(0, 80))"
    assert browser.js(over) == []
    assert browser.js("getComputedStyle(document.querySelector('.touch')).display") == (
        "block" if width < 500 else "none"
    )


@in_browser
def test_fingers_find_every_control_and_phones_do_not_zoom_into_a_field(page: Browser, tmp_path: Path):
    page.show(390, 844, touch=True)
    page.choose("#files", picture(tmp_path / "a.png"))
    answered(page)
    page.js("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    controls = page.js("""[...document.querySelectorAll("a, button, .button, summary, fieldset label, input[type=text]")]
        .filter((node) => node.checkVisibility() && !node.matches(".away"))
        .map((node) => [node.innerText || node.id, node.getBoundingClientRect().height])""")
    assert {"Clear", "Copy", "The API", "Take a photo", "The same with curl", "numbers-0"} <= {
        name for name, _ in controls
    }
    assert [control for control in controls if control[1] < 44] == []
    # Safari enlarges the page around a field whose letters are smaller.
    sizes = "[...document.querySelectorAll('input[type=text], input[type=password], textarea')].map((node) => parseFloat(getComputedStyle(node).fontSize))"
    assert min(page.js(sizes)) >= 16


@in_browser
def test_it_is_dark_in_the_dark_and_still_for_those_who_want_it_still(page: Browser, tmp_path: Path):
    page.choose("#files", picture(tmp_path / "a.png"))
    answered(page)

    def style(node: str, name: str) -> object:
        return page.js(f"getComputedStyle(document.querySelector('{node}')).{name}")

    page.show(1200, 900, dark=True, still=True)
    assert style("body", "backgroundColor") == "rgb(17, 22, 29)"
    assert style(".track i", "animationName") == "none"
    page.show(1200, 900)
    assert style("body", "backgroundColor") == "rgb(251, 252, 253)"
    assert style(".track i", "animationName") == "grow"
