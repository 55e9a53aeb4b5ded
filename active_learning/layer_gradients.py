"""What a layer's input and the gradient at its output say about the gradients of its parameters.

Clips of an evaluation-mode batch do not meet inside a layer, so that one backward pass for the
whole batch brings each clip's own signal. Formulas: Linear, sum_t delta_t a_t^T and sum_t delta_t;
convolution, the same on the patches that the kernel sees, per group; normalisation, sum_t
delta_t * normalised a_t and sum_t delta_t; embedding, delta_t added to the row of token t.

Shapes: K hypotheses, B clips, ... positions of any number of axes, C channels, T positions, p
inputs and q outputs of a group of channels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.active_learning.factored_gradients import (
    LIMIT_ELEMENTS,
    FactoredGradient,
    Product,
    Rows,
    Vector,
)

Use = tuple[Tensor, Tensor]
"""One use of a layer: its input (B, ...) and the gradients at its output (K, B, ...)."""

Gradients = Mapping[str, FactoredGradient]


def supports(module: nn.Module) -> bool:
    """Whether the gradients of this layer's own parameters can be read off its signals."""
    kind = _kind(module)
    if kind is None:
        return False
    if isinstance(module, nn.Embedding):
        return not module.scale_grad_by_freq and module.max_norm is None
    # without running statistics the clips of a batch are normalised together
    return not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.track_running_stats


@torch.no_grad()
def squared_norms(
    module: nn.Module, uses: Sequence[Use], limit: int = LIMIT_ELEMENTS, *, together: bool = False
) -> dict[str, Tensor]:
    """Squared norms of each clip's gradient of each parameter that the layer itself owns.

    Parameters that do not require a gradient are left out.

    Parameters
    ----------
    module
        A layer for which `supports` holds.
    uses
        Every use of the layer in the forward pass; their gradients are added before the norm.
    limit
        Bound on the elements of a temporary tensor; clips are taken in parts that respect it.
    together
        Return the sums over the hypotheses (1, B) alone.

    Returns
    -------
    dict[str, Tensor]
        Squared norms (K, B) by the parameter's name in the layer.
    """
    kind = _kind(module)
    if kind is None:
        raise TypeError(f"no rule for the gradients of {type(module).__name__}")
    rule = _RULES[kind]
    wanted = {name for name, own in module.named_parameters(recurse=False) if own.requires_grad}
    clips = len(uses[0][0])
    parts: list[dict[str, Tensor]] = []
    size = _clips_at_once(module, uses, limit)
    for start in range(0, clips, size):
        rows = slice(start, start + size)
        gradients = [rule(module, a[rows], delta[:, rows]) for a, delta in uses]
        names = [name for name in gradients[0] if name in wanted]
        sums = {n: reduce(lambda x, y: x.plus(y), [g[n] for g in gradients]) for n in names}
        if together:
            sums = {name: gradient.together() for name, gradient in sums.items()}
        parts.append({name: gradient.squared(limit) for name, gradient in sums.items()})
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def _kind(module: nn.Module) -> type[nn.Module] | None:
    """Return the torch class whose forward the module runs: a subclass's own may do anything."""
    for kind in type(module).__mro__:
        if kind in _RULES:
            return kind
        if "forward" in vars(kind):
            return None
    return None


def _clips_at_once(module: nn.Module, uses: Sequence[Use], limit: int) -> int:
    taps = math.prod(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else 1
    clips = max(1, len(uses[0][0]))
    elements = sum(taps * a.numel() + delta.numel() for a, delta in uses)
    return max(1, limit * clips // max(1, elements))


def _linear(module: nn.Module, a: Tensor, delta: Tensor) -> Gradients:
    left = a.reshape(len(a), 1, -1, a.shape[-1])
    right = delta.reshape(*delta.shape[:2], 1, -1, delta.shape[-1])
    return {"weight": Product(left, right), "bias": Vector(right.sum((2, 3)))}


def _convolution(module: nn.Module, a: Tensor, delta: Tensor) -> Gradients:
    assert isinstance(module, nn.modules.conv._ConvNd)
    patches = functional.pad(a, _padding(module), _PAD_MODES[module.padding_mode])
    axes = len(module.kernel_size)
    for axis, (kernel, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        patches = patches.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    # (B, C, T..., kernel...) -> (B, G, T, p)
    grouped = torch.unflatten(patches.flatten(2, 1 + axes).flatten(3), 1, (module.groups, -1))
    left = grouped.transpose(2, 3).flatten(3)
    outputs = delta.flatten(3)
    right = torch.unflatten(outputs, 2, (module.groups, -1)).mT
    return {"weight": Product(left, right), "bias": Vector(outputs.sum(-1))}


_PAD_MODES = {
    "zeros": "constant",
    "circular": "circular",
    "reflect": "reflect",
    "replicate": "replicate",
}


def _padding(module: nn.modules.conv._ConvNd) -> list[int]:
    """Return the padding as `torch.nn.functional.pad` wants it: last axis first, both sides."""
    sides: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        if module.padding == "same":
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]  # the odd one goes to the end
        elif isinstance(module.padding, str):  # "valid"
            sides += [0, 0]
        else:
            sides += [int(module.padding[axis])] * 2
    return sides


def _layer_norm(module: nn.Module, a: Tensor, delta: Tensor) -> Gradients:
    assert isinstance(module, nn.LayerNorm)
    normalised = functional.layer_norm(a, module.normalized_shape, eps=module.eps)
    return _gain_and_bias_last(normalised, delta, math.prod(module.normalized_shape))


def _rms_norm(module: nn.Module, a: Tensor, delta: Tensor) -> Gradients:
    assert isinstance(module, nn.RMSNorm)
    normalised = functional.rms_norm(a, module.normalized_shape, eps=module.eps)
    return _gain_and_bias_last(normalised, delta, math.prod(module.normalized_shape))


def _group_norm(module: nn.Module, a: Tensor, delta: Tensor) -> Gradients:
    assert isinstance(module, nn.GroupNorm)
    normalised = functional.group_norm(a, module.num_groups, eps=module.eps)
    return _gain_and_bias_second(normalised, delta)


def _batch_norm(module: nn.Module, a: Tensor, delta: Tensor) -> Gradients:
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    mean, variance = module.running_mean, module.running_var
    return _gain_and_bias_second(functional.batch_norm(a, mean, variance, eps=module.eps), delta)


def _gain_and_bias_last(normalised: Tensor, delta: Tensor, width: int) -> Gradients:
    """Sum over the axes between the clips and the normalised axes, which are the last ones."""
    normalised = normalised.reshape(len(normalised), -1, width)
    delta = delta.reshape(*delta.shape[:2], -1, width)
    return {"weight": Vector((delta * normalised).sum(2)), "bias": Vector(delta.sum(2))}


def _gain_and_bias_second(normalised: Tensor, delta: Tensor) -> Gradients:
    """Sum over the axes after the channels, which come second."""
    normalised = normalised.reshape(*normalised.shape[:2], -1)
    delta = delta.reshape(*delta.shape[:3], -1)
    return {"weight": Vector((delta * normalised).sum(3)), "bias": Vector(delta.sum(3))}


def _embedding(module: nn.Module, ids: Tensor, delta: Tensor) -> Gradients:
    assert isinstance(module, nn.Embedding)
    if module.padding_idx is not None:
        delta = delta * (ids != module.padding_idx)[..., None]
    return {"weight": Rows(ids.reshape(len(ids), -1), _positions(delta))}


def _positions(delta: Tensor) -> Tensor:
    """Join the axes between the clips and the last one."""
    return delta.reshape(*delta.shape[:2], -1, delta.shape[-1])


_RULES: Mapping[type[nn.Module], Callable[[nn.Module, Tensor, Tensor], Gradients]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    nn.Embedding: _embedding,
}
