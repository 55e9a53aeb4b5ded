"""Vocal tract length perturbation of cepstra (Jaitly and Hinton 2013): other people's voices.

A vocal tract shorter by some share has its resonances higher by that share. Cepstra are turned back
into a smooth log-mel spectrum, its frequency axis is stretched, and they are computed again: one
linear map of the cepstra.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BANDS = 40
_TOP_HZ = 8_000.0
# above this share of the top the axis bends back, so that the top stays where it is
_BEND = 0.6


def change_vocal_tract(cepstra: Tensor, factor: float) -> Tensor:
    """Return cepstra (T, C), C0 first and not liftered, with resonances ``factor`` times as high.

    Factors are rounded to hundredths.
    """
    matrix = _map(cepstra.shape[1], round(factor, 2))
    return cepstra @ torch.from_numpy(matrix).to(cepstra)


@lru_cache(maxsize=256)
def _map(coefficients: int, factor: float) -> NDArray[np.float64]:
    """Return the map (C, C) to be multiplied from the right."""
    order, band = np.arange(coefficients)[:, None], np.arange(_BANDS)[None]
    cosines = np.cos(np.pi / _BANDS * (band + 0.5) * order)
    cosines *= np.sqrt(np.where(order == 0, 1.0, 2.0) / _BANDS)
    return cosines @ _stretch(factor).T @ cosines.T


def _stretch(factor: float) -> NDArray[np.float64]:
    """Return (M, M): each band of the new spectrum, interpolated from those of the old one."""
    centres = _hertz((np.arange(_BANDS) + 0.5) / _BANDS)
    bend = _BEND * _TOP_HZ * min(1.0, factor)
    source = np.interp(centres, [0.0, bend, _TOP_HZ], [0.0, bend / factor, _TOP_HZ])
    place = np.clip(_share(source) * _BANDS - 0.5, 0, _BANDS - 1)
    low = np.minimum(place.astype(int), _BANDS - 2)
    matrix = np.zeros((_BANDS, _BANDS))
    rows = np.arange(_BANDS)
    matrix[rows, low] = 1 - (place - low)
    matrix[rows, low + 1] = place - low
    return matrix


def _share(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where frequencies lie on the mel scale, 1 being the top."""
    return np.log1p(hertz / 700.0) / np.log1p(_TOP_HZ / 700.0)


def _hertz(share: NDArray[np.float64]) -> NDArray[np.float64]:
    return 700.0 * np.expm1(share * np.log1p(_TOP_HZ / 700.0))
