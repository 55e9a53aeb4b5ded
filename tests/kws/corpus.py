"""A corpus of beeps on disk: a rising pair of tones is the keyword, other tones are not."""

import json

import numpy as np

from speechkit.audio import write_audio
from tests.kws.helpers import noise, tone


def beeps(*hz, rng):
    """Tones one after the other in half a second of quiet on both sides."""
    pieces = [tone(0.25, f * rng.uniform(0.97, 1.03)) for f in hz]
    quiet = noise(0.6, seed=int(rng.integers(1 << 30)), level=1e-3)
    return np.concatenate([quiet, *pieces, quiet])


def write_corpus(folder, *, keywords=12, others=12):
    """Write manifests positives.jsonl, negatives.jsonl and noise.jsonl; return their paths."""
    rng = np.random.default_rng(0)
    rows = {"positives": [], "negatives": [], "noise": []}

    def add(kind, name, audio, **more):
        write_audio(folder / kind / f"{name}.wav", audio)
        row = {"audio_filepath": f"{kind}/{name}.wav", "duration": len(audio) / 16000}
        rows[kind].append(row | {"sample_rate": 16000, "text": None, "label": None} | more)

    for index in range(keywords):
        add("positives", index, beeps(600, 1200, rng=rng), label="Computer")
    for index in range(others):
        add("negatives", index, beeps(*rng.uniform(300, 4000, 2), rng=rng), text="something else")
    for index in range(6):
        add("noise", index, noise(2.0, seed=index))
    for kind, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{kind}.jsonl").write_text(text)
    return {kind: folder / f"{kind}.jsonl" for kind in rows}
