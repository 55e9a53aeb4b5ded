"""The pictures of the documentation are those that the script draws."""

from pathlib import Path

from speechkit.kernels import pictures

README = Path(pictures.__file__).with_name("README.md")


def test_every_picture_is_drawn_shown_and_small(tmp_path):
    drawn = {
        path.name
        for path in (*pictures.draw(tmp_path), pictures.draw_heads(tmp_path / "spread_heads.png"))
    }
    assert drawn == {path.name for path in pictures.FOLDER.iterdir()}
    assert all(f"pictures/{name}" in README.read_text(encoding="utf-8") for name in drawn)
    assert all(path.stat().st_size < 30_000 for path in pictures.FOLDER.iterdir())
