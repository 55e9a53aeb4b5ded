"""A tiny model and a tiny corpus that the tests of training, evaluation and sampling share."""

import numpy as np
import torch
from torch import nn

from speechkit.density.artifact import Artifact
from speechkit.density.corpus import Corpus, Stream
from speechkit.density.model import DensityConfig, DensityModel
from speechkit.density.train import ModelChanges
from speechkit.sparse_transformer import StackConfig

SHAPE = (7, 6)
PATTERNS = ("Local(6)", "Strided(6)")
TINY = ModelChanges(
    shape=list(SHAPE), layers=2, width=16, heads=2, patterns=list(PATTERNS), dropout=0.1
)


def periodic_corpus(size=3000, valid=500, seed=0):
    """A text that repeats itself every six bytes, a byte in ten at random."""
    rng = np.random.default_rng(seed)
    data = np.resize(np.frombuffer(b"speech", dtype=np.uint8), size).copy()
    noisy = rng.random(size) < 0.1
    data[noisy] = rng.integers(256, size=noisy.sum())
    cut = size - valid
    splits = {"train": Stream(data[:cut]), "valid": Stream(data[cut:])}
    return Corpus(name="periodic", kind="text", splits=splits)


def tiny_model(*, shape=SHAPE, seed=0, trained=True, **stack):
    """A model whose output layer is not zero any more, as if it had been trained."""
    stack = {"layers": 2, "width": 16, "heads": 2, "patterns": PATTERNS, **stack}
    torch.manual_seed(seed)
    model = DensityModel(DensityConfig(shape=shape, stack=StackConfig(**stack)))
    if trained:
        nn.init.normal_(model.output.weight, std=0.3)
    return model.eval()


def tiny_artifact(corpus=None, **changes):
    return Artifact.of(tiny_model(**changes), corpus or periodic_corpus())
