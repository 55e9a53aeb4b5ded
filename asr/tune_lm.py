"""Choosing the weights of a language model on transcribed recordings."""

import dataclasses
import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from lhotse.cut import Cut

from speechkit.asr.decoding import DecodingConfig
from speechkit.asr.recogniser import Recogniser
from speechkit.asr.scoring import Transcript, score
from speechkit.asr.transcriber import Transcriber

logger = logging.getLogger(__name__)

_WEIGHTS = (0.2, 0.4, 0.7)
_BONUSES = (0.0, 1.0, 2.0)


def choose_weights(recogniser: Recogniser, cuts: Sequence[Cut], lm: Path) -> DecodingConfig:
    """Return the settings, with this ARPA file, of the lowest WER on cuts; of equals the first.

    What is found fits these cuts better than others: give some that serve for nothing but choices.
    """
    greedy = Transcriber(recogniser, DecodingConfig(own_lm=False))
    recogniser.hear(cuts)
    posteriors = {cut.id: greedy.log_probs(cut) for cut in cuts}
    references = {cut.id: recogniser.reference(cut) or "" for cut in cuts}
    best, lowest = DecodingConfig(lm=lm), float("inf")
    for weight, bonus in product(_WEIGHTS, _BONUSES):
        config = dataclasses.replace(best, lm_weight=weight, word_bonus=bonus)
        transcriber = Transcriber(recogniser, config)
        wer = score(
            Transcript(id_, references[id_], transcriber.decode(log_probs).text)
            for id_, log_probs in posteriors.items()
        ).words.rate
        logger.info("lm_weight %g, word_bonus %g: WER %.2f %%", weight, bonus, 100 * wer)
        if wer < lowest:
            best, lowest = config, wer
    return best
