"""``speechkit al label``: a local page on which a person labels the selected clips.

The page only shows and forwards; what a label is and how it is kept stands in `labelling`.
"""

import html
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from speechkit.active_learning.annotations import TextRules
from speechkit.active_learning.labelling import Labelling
from speechkit.errors import AudioError, JobError, RequestError

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"

# the keys work wherever the cursor is, in the text as well
_SHORTCUTS = """
<script>
document.addEventListener("keydown", (event) => {
  const press = (id) => { event.preventDefault(); document.getElementById(id).click(); };
  const player = document.getElementById("player");
  if (event.ctrlKey && event.key === "Enter") press("save");
  else if (event.key === "Escape") press("skip");
  else if (event.altKey && event.key === "ArrowLeft") press("back");
  else if (event.altKey && event.key >= "1" && event.key <= "9") {
    const choices = document.querySelectorAll("#suggestions input");
    if (event.key <= choices.length) { event.preventDefault(); choices[event.key - 1].click(); }
  } else if (event.ctrlKey && event.code === "Space" && player) {
    event.preventDefault();
    player.paused ? player.play() : player.pause();
  }
});
</script>
"""
_KEYS = (
    "**Ctrl+Enter** save · **Esc** skip · **Ctrl+Space** play or pause · "
    "**Alt+1 ... 9** take a suggestion · **Alt+←** back"
)
_STYLE = (
    "#clip audio {width: 100%} #note {min-height: 1.5em} "
    "#suggestions .wrap {flex-direction: column; align-items: flex-start} footer {display: none}"
)
_FOCUS = "() => document.querySelector('#text textarea')?.focus()"


def label(
    selection: Path,
    *,
    out: Path,
    choices: list[str] | None = None,
    annotator: str | None = None,
    port: int = 7860,
    config: TextRules = TextRules(),
) -> None:
    """Label selected clips on a page in the browser, on this machine alone.

    Each clip is played, with the model's hypotheses to start from; its text is saved, or the clip
    skipped, and the next one comes. Every answer is on disk at once, and the same command goes on
    where it was left. End it with Ctrl+C. OUT/labels.jsonl and OUT/cuts.jsonl.gz are what
    `al import` writes.

    Parameters
    ----------
    selection
        the folder that `al select` wrote.
    out
        the folder of labels; the same one each time.
    choices
        the only labels that there are, such as the words of a spotter; picked, not written.
    annotator
        a name to write beside each label.
    port
        where the page listens, on 127.0.0.1.
    """
    labelling = Labelling(selection, out, rules=config, choices=choices, annotator=annotator)
    with tempfile.TemporaryDirectory() as folder:
        page = build_page(labelling, Path(folder))
        logger.info("label at http://%s:%d; end with Ctrl+C", _HOST, port)
        serve(page, Path(folder), port=port)
    done = labelling.progress()
    logger.info("%s: %d of %d clips answered", out, done.clips, done.all_clips)


def serve(page: Any, folder: Path, *, port: int, wait: bool = True) -> None:
    """Show a page until the user ends it, or, without ``wait``, until ``page.close()``.

    Raises
    ------
    RequestError
        if the port is taken.
    """
    import gradio

    # of the machine itself alone: no copy of the page at gradio's, no fonts from elsewhere
    try:
        page.launch(
            server_name=_HOST,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=not wait,
            allowed_paths=[str(folder)],
            ssr_mode=False,
            theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            head=_SHORTCUTS,
            css=_STYLE,
            app_kwargs={"middleware": [_own_names_only()]},
        )
    except (OSError, OverflowError) as error:
        raise RequestError(
            f"port {port}: is taken, or is none; give another --port, up to 65535"
        ) from error


def _own_names_only() -> Any:
    """Refuse requests for other hosts: a page elsewhere may give its own name this address."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return Middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"])


def build_page(labelling: Labelling, folder: Path) -> Any:
    """Return the page, a `gradio.Blocks`; ``folder`` is for the audio that it plays.

    Raises
    ------
    JobError
        if the extra is missing.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise JobError(
            "the page needs an extra: pip install 'sparse-speechkit[label]'; or use `al export` "
            "and a tool of yours"
        ) from error

    with gradio.Blocks(title="Labels", analytics_enabled=False) as page:
        place, since = gradio.State(0), gradio.State(0.0)
        progress = gradio.Markdown(elem_id="progress")
        clip = gradio.HTML(elem_id="clip")
        suggestions = gradio.Radio(label="Suggestions", elem_id="suggestions")
        text = gradio.Textbox(label="What is said", lines=2, elem_id="text", autofocus=True)
        note = gradio.Markdown(elem_id="note")
        with gradio.Row():
            back = gradio.Button("Back", elem_id="back")
            skip = gradio.Button("Skip", elem_id="skip")
            save = gradio.Button("Save", variant="primary", elem_id="save")
        gradio.Markdown(_KEYS)
        shown = [place, since, progress, clip, suggestions, text, note]

        def show(index: int | None, note: str = "") -> list[Any]:
            """Return what the page holds when a clip comes up; None: all have their answer."""
            finished = index is None
            index = 0 if index is None else index
            offered = labelling.suggestions(index)
            current = labelling.text(index)
            return [
                index,
                time.monotonic(),
                _headline(labelling, None if finished else index),
                _player(labelling, index, folder),
                gradio.update(choices=offered, value=current if current in offered else None),
                current,
                note,
            ]

        def on_save(index: int, since: float, text: str) -> list[Any]:
            fault = labelling.label(index, text, seconds=time.monotonic() - since)
            if fault is not None:
                # the text stays as it is, to be mended
                return [gradio.skip()] * (len(shown) - 1) + [f"Not saved: {fault}."]
            return show(labelling.next_open(index))

        def on_skip(index: int, since: float) -> list[Any]:
            labelling.skip(index, seconds=time.monotonic() - since)
            return show(labelling.next_open(index))

        page.load(lambda: show(labelling.next_open(-1)), None, shown)
        save.click(on_save, [place, since, text], shown).then(js=_FOCUS)
        skip.click(on_skip, [place, since], shown).then(js=_FOCUS)
        back.click(lambda i: show((i - 1) % len(labelling)), [place], shown).then(js=_FOCUS)
        suggestions.input(lambda chosen: chosen, [suggestions], [text])
    return page


def _headline(labelling: Labelling, index: int | None) -> str:
    done = labelling.progress()
    counts = (
        f"{done.clips} of {done.all_clips} clips, {done.seconds:.0f} of {done.all_seconds:.0f} s"
    )
    if index is None:
        return f"### All clips are answered\n{counts}. Go back to change one, or end with Ctrl+C."
    row = labelling.rows[index]
    facts = [f"{row['duration_s']:.1f} s" if "duration_s" in row else None, row.get("speaker")]
    before = labelling.given(index)
    facts.append(None if before is None else before.status)
    about = ", ".join(str(fact) for fact in facts if fact)
    return f"### Clip {index + 1} ({about})\n{counts} answered"


def _player(labelling: Labelling, index: int, folder: Path) -> str:
    try:
        path = labelling.write_audio(index, folder)
    except (AudioError, JobError, OSError) as error:
        return f"<p>This clip cannot be played: {html.escape(str(error))}. Skip it.</p>"
    source = f"/gradio_api/file={quote(str(path))}"
    return f'<audio id="player" controls autoplay src="{source}"></audio>'
