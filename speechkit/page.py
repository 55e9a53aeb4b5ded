"""A page of results in one HTML file: text, tables, pictures and sounds, all of it inside.

It needs no server and no network, so that it can be opened from a disk or sent by mail.
"""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from speechkit.files import write_text

_TYPES = {".png": "image/png", ".wav": "audio/wav", ".flac": "audio/flac"}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b; background: #fff }
h1 { font-size: 1.7rem } h2 { font-size: 1.25rem; margin-top: 2.5rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem }
th, td { text-align: left; padding: 0.3rem 0.9rem 0.3rem 0; border-bottom: 1px solid #ddd;
         vertical-align: middle }
td audio { width: 14rem; height: 2rem; display: block }
p > audio { width: 100% }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0 }
figcaption, .note { color: #555; font-size: 0.9rem }
figure { margin: 1rem 0 }
"""


class Html(str):
    """Text that is HTML already and goes into a page as it is; all other text is escaped."""

    __slots__ = ()


def paragraph(text: str, *, note: bool = False) -> Html:
    """Return a paragraph, in small grey type if it is a note."""
    kind = ' class="note"' if note else ""
    return Html(f"<p{kind}>{_escaped(text)}</p>")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """Return a table; a cell may be `Html`, such as a player; None is a dash."""
    head = "".join(f"<th>{_escaped(cell)}</th>" for cell in header)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return Html(f"<table>\n<tr>{head}</tr>\n{body}\n</table>")


def picture(path: Path, caption: str) -> Html:
    """Return a PNG with a line of text below it."""
    text = _escaped(caption)
    return Html(
        f'<figure><img alt="{text}" src="{_inside(path)}"><figcaption>{text}</figcaption></figure>'
    )


def player(path: Path) -> Html:
    """Return a player of a WAV or FLAC file."""
    return Html(f'<audio controls preload="none" src="{_inside(path)}"></audio>')


def section(title: str, *parts: Html) -> Html:
    """Return parts under a heading."""
    return Html("\n".join([f"<h2>{_escaped(title)}</h2>", *parts]))


def write_page(path: Path, title: str, *parts: Html) -> None:
    """Write a page, whole or not at all."""
    name = _escaped(title)
    write_text(
        path,
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{name}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{name}</h1>\n" + "\n".join(parts) + "\n</body></html>\n",
    )


def _escaped(cell: object) -> str:
    if isinstance(cell, Html):
        return cell
    return "-" if cell is None else html.escape(str(cell))


def _inside(path: Path) -> str:
    """Return a file as the address that holds it."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_TYPES[path.suffix]};base64,{content}"
