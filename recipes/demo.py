"""The whole story on speech that the machine makes itself: spot, recognise, choose what to label.

    python recipes/demo.py --out out/demo            # about 14 minutes on 2 cores
    python recipes/demo.py --out out/smoke --smoke   # a minute, learns nothing

kws_demo.py trains, measures and uses a keyword spotter; al_demo.py trains a recogniser that asks
for labels. OUT/index.html then shows both, with players, in one file that needs no network.
"""

import sys
from pathlib import Path

from al_demo import al_demo
from demo_page import demo_page
from kws_demo import kws_demo

from speechkit.cli import run_recipe


def demo(*, out: Path, smoke: bool = False) -> None:
    """Run both demonstrations and write a page about them.

    Parameters
    ----------
    out
        gets spotter/, recogniser/ and index.html.
    smoke
        tiny corpora and short trainings, to see that everything runs.
    """
    kws_demo(out=out / "spotter", smoke=smoke)
    al_demo(out=out / "recogniser", smoke=smoke)
    demo_page(out=out)


if __name__ == "__main__":
    sys.exit(run_recipe(demo))
