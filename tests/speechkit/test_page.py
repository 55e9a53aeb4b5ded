import base64
import re
from html.parser import HTMLParser

import pytest

from speechkit.page import Html, paragraph, picture, player, section, table, write_page


class Balance(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_holds_all_that_it_shows(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "a.wav").write_bytes(b"sound")
    parts = [
        paragraph("5 < 6 & so on"),
        table(["clip", "said"], [[player(tmp_path / "a.wav"), None], ["<b>", Html("<i>x</i>")]]),
        picture(tmp_path / "a.png", 'a "quoted" caption'),
    ]
    write_page(tmp_path / "out" / "index.html", "Results & more", section("One", *parts))
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert {"h1", "h2", "p", "table", "audio", "img"} <= set(parser.seen)
    sources = re.findall(r'src="data:[a-z]+/[a-z]+;base64,([^"]+)"', text)
    assert [base64.b64decode(source) for source in sources] == [b"sound", b"picture"]
    assert "http" not in text
    for shown in ("5 &lt; 6 &amp; so on", "<td>&lt;b&gt;</td>", "<td><i>x</i></td>", "<td>-</td>"):
        assert shown in text


def test_an_unknown_kind_of_file_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("no picture")
    with pytest.raises(KeyError):
        picture(tmp_path / "a.txt", "")
