"""The labelling page in a real browser; skipped where there is none."""

import http.client
import json
import shutil
import socket

import pytest

from speechkit.active_learning.annotations import read_labels
from speechkit.active_learning.label import build_page, serve
from speechkit.active_learning.labelling import Labelling
from speechkit.errors import RequestError
from tests.active_learning.test_labelling import make_selection

pytest.importorskip("gradio", reason="the labelling page needs the extra: label")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra: dev)")

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (Debian: chromium)"),
]


@pytest.fixture
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def labelling(tmp_path):
    return Labelling(make_selection(tmp_path), tmp_path / "labels")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def address(labelling, tmp_path):
    audio = tmp_path / "audio"
    audio.mkdir()
    page = build_page(labelling, audio)
    port = free_port()
    serve(page, audio, port=port, wait=False)
    yield f"http://127.0.0.1:{port}"
    page.close()


def test_other_hosts_are_refused(address, labelling, tmp_path):
    """A page elsewhere may have its own name point here, and would then be heard."""
    port = int(address.rsplit(":", 1)[1])
    for host, status in ((f"evil.example:{port}", 400), (f"127.0.0.1:{port}", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        body = json.dumps({"data": ["forged"]})
        headers = {"Host": host, "Content-Type": "application/json"}
        connection.request("POST", "/gradio_api/call/on_save", body, headers)
        assert connection.getresponse().status == status
        connection.close()
        if status == 400:
            assert not read_labels(tmp_path / "labels")


def opened(browser, address):
    """Open the page; requests that leave the machine are counted, and fail."""
    tab = browser.new_page()
    tab.set_default_timeout(20_000)
    abroad = []
    tab.route(
        lambda url: "127.0.0.1" not in url and not url.startswith(("data:", "blob:")),
        lambda route: (abroad.append(route.request.url), route.abort()),
    )
    tab.goto(address)
    return tab, abroad


def at_clip(tab, number):
    tab.wait_for_function(
        f"document.querySelector('#progress')?.innerText.includes('Clip {number} ')"
    )


def test_label_skip_reload_and_finish(browser, address, labelling, tmp_path):
    tab, abroad = opened(browser, address)
    at_clip(tab, 1)
    text = tab.locator("#text textarea")
    assert text.input_value() == "guess 0"
    # it plays: the browser could decode the file that the page names
    tab.wait_for_function("document.querySelector('#player').readyState >= 2")
    assert tab.evaluate("document.querySelector('#player').duration") == pytest.approx(1, abs=0.01)
    tab.keyboard.press("Control+Space")

    text.fill("what was said")
    text.press("Control+Enter")
    at_clip(tab, 2)
    first, second, third, fourth = (cut.id for cut in labelling.cuts)
    assert read_labels(tmp_path / "labels")[first].text == "what was said"

    # a suggestion is shown as it is, markup and all, and taken by its key
    tab.keyboard.press("Alt+2")
    tab.wait_for_function("document.querySelector('#text textarea').value.includes('guest')")
    assert text.input_value() == "<b>guest</b> 1"
    tab.locator("#save").click()
    at_clip(tab, 3)
    assert "cannot be played" in tab.locator("#clip").inner_text()
    tab.keyboard.press("Escape")
    at_clip(tab, 4)

    # what cannot be a label is refused, stays in the box and does not go on
    text.fill("")
    text.press("Control+Enter")
    tab.wait_for_function("document.querySelector('#note').innerText.includes('Not saved')")
    assert fourth not in read_labels(tmp_path / "labels")

    # another visit goes on at the first clip without an answer
    tab.reload()
    at_clip(tab, 4)
    assert "3 of 4 clips" in tab.locator("#progress").inner_text()
    tab.keyboard.press("Alt+ArrowLeft")
    at_clip(tab, 3)
    assert "ignored" in tab.locator("#progress").inner_text()
    tab.keyboard.press("Escape")
    at_clip(tab, 4)
    text.press("Control+Enter")
    tab.wait_for_function(
        "document.querySelector('#progress').innerText.includes('All clips are answered')"
    )
    states = {id_: label.status for id_, label in read_labels(tmp_path / "labels").items()}
    assert abroad == []
    assert states == {first: "labelled", second: "labelled", third: "ignored", fourth: "labelled"}


def test_the_port_is_named_when_it_is_taken(labelling, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port}: is taken"):
            serve(build_page(labelling, tmp_path), tmp_path, port=port, wait=False)
