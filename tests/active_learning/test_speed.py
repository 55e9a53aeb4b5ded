"""What is timed computes the same: the naive way equals the exact one, the cascade its stages."""

import numpy as np
import pytest

from speechkit.active_learning.blocks import read_scores
from speechkit.active_learning.cascade import Cascade
from speechkit.active_learning.egl import Egl
from speechkit.active_learning.models import Clip
from speechkit.active_learning.score import score_pool
from speechkit.active_learning.scoring import ScoringConfig
from speechkit.active_learning.speed import SpeedConfig, cascaded, markdown, measure_speed, naive
from tests.active_learning.helpers import TinyRecogniser, pool_of, utterances

CONFIG = SpeedConfig(k=4, batch=4, share=0.25, passes=2, naive_clips=3, rounds=1)


def test_all_ways_are_timed_and_agree():
    found = measure_speed(TinyRecogniser(), pool_of(9), CONFIG)
    assert all(value > 0 for value in found["ms_a_clip"].values())
    assert found["largest difference of naive and exact"] < 1e-5
    assert -1 <= found["cascade: Spearman with exact"] <= 1
    assert 0 <= found["cascade: top-10 % overlap"] <= 1
    assert "| naive |" in markdown(found)


def test_the_naive_way_is_the_exact_score():
    model, cuts = TinyRecogniser(), pool_of(5)
    batch = utterances(model, cuts)
    egl = Egl(k=4, tolerance=0.0)
    assert naive(model, batch.clips, egl) == pytest.approx(egl.score(batch)[""], rel=1e-5)


def test_the_cascade_is_the_strategy_of_that_name(tmp_path):
    model, cuts = TinyRecogniser(), pool_of(8)
    clips = [Clip(cut, model.features([cut])[0][0]) for cut in cuts]
    config = SpeedConfig(k=4, share=0.25, passes=4)
    name = Cascade(share=0.25, k=4, passes=4)
    text = f"cascade:share={name.share},k={name.k},passes={name.passes}"
    score_pool(cuts, model, [text], folder=tmp_path, config=ScoringConfig(nbest=0))
    table = read_scores(tmp_path)
    expected = dict(zip(table["id"].to_pylist(), table[text].to_pylist(), strict=True))
    scores = cascaded(model, clips, config)
    assert np.allclose(scores, [expected[clip.id] for clip in clips], rtol=1e-4)
