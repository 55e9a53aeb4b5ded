"""One step of a stream with a state, against the detector on the same chunks."""

import numpy as np
import pytest
import torch

from speechkit.kws.detector import Detector
from speechkit.kws.spotter import DetectionConfig, Spotter, SpotterConfig
from speechkit.kws.stream_graph import STATE, StreamGraph
from tests.kws.helpers import TINY, bursts

CASES = {
    "paper": ({"type": "pcen"}, {}),
    "no smoothing, learnt PCEN": ({"type": "pcen", "trainable": True}, {"smoothing_windows": 1}),
    "long smoothing": ({"type": "logmel"}, {"smoothing_windows": 4}),
    "short shift": ({"type": "pcen"}, {"shift_s": 0.01}),
    "long shift": ({"type": "pcen"}, {"shift_s": 1.0}),
    "kaldi": ({"type": "mfcc", "kaldi": True, "coefficients": 40}, {"shift_s": 0.05}),
    "frame energy": ({"type": "mfcc", "use_energy": True, "coefficients": 40}, {}),
}


def spotter_of(frontend, detection):
    torch.manual_seed(0)
    config = SpotterConfig(
        labels=("_background_", "left", "right"),
        frontend=frontend,
        network=TINY,
        detection=DetectionConfig(**detection),
    )
    spotter = Spotter(config).eval()
    with torch.no_grad():
        spotter.network.output.weight *= 6
    return spotter


@pytest.mark.parametrize("case", CASES)
def test_it_gives_the_scores_of_the_detector_chunk_by_chunk(case):
    spotter = spotter_of(*CASES[case])
    graph, detector = StreamGraph(spotter), Detector(spotter)
    state = graph.start()
    shapes = {name: (zeros.shape, zeros.dtype) for name, zeros in state.items()}
    assert not any(zeros.any() for zeros in state.values())
    chunks = torch.from_numpy(bursts(4.0)).unfold(0, graph.chunk_samples, graph.chunk_samples)
    for number, chunk in enumerate(chunks):
        with torch.inference_mode():
            found, *following = graph(chunk, *state.values())
        state = dict(zip(STATE, following, strict=True))
        assert shapes == {name: (value.shape, value.dtype) for name, value in state.items()}
        wanted = detector.scores(chunk.numpy())
        assert len(wanted) == (number >= graph.first_chunk)
        if len(wanted):
            np.testing.assert_allclose(found.numpy(), wanted[0], rtol=1e-4, atol=1e-6)
        else:
            assert not found.any()
    assert number > graph.first_chunk
