"""Which parameters a norm is over, and the state of a model in which it is taken."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from speechkit.errors import RequestError


def choose(model: nn.Module, parameters: str | Sequence[str] = "all") -> dict[str, nn.Parameter]:
    """Return the parameters that a request names, frozen ones included.

    Parameters
    ----------
    model
        The model.
    parameters
        "all", or one or several of: a parameter's name, a module's name (all below it; the output
        layer, too, is asked for by its name), a regular expression that matches whole names.

    Raises
    ------
    RequestError
        When a request matches no parameter.
    """
    named = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    chosen: set[str] = set()
    requests = [parameters] if isinstance(parameters, str) else parameters
    if not requests:
        raise RequestError("no parameters asked for; give 'all' or at least one name")
    for request in requests:
        found = {n for n in named if request == "all" or _matches(request, n)}
        if not found:
            tops = sorted({name.split(".")[0] for name in named})
            raise RequestError(
                f"no parameter matches {request!r}; give 'all', the name of a module or of a "
                f"parameter, or a regular expression for whole names (top level: {tops})"
            )
        chosen |= found
    return {name: named[name] for name in named if name in chosen}


def _matches(request: str, name: str) -> bool:
    if name == request or name.startswith(f"{request}."):
        return True
    try:
        return re.fullmatch(request, name) is not None
    except re.error as error:
        raise RequestError(f"parameters {request!r} is no regular expression: {error}") from error


@contextmanager
def scoring_mode(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Put every module in evaluation mode and let only the chosen parameters require a gradient.

    Both are put back at the end, module by module and parameter by parameter.
    """
    training = {module: module.training for module in model.modules()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    wanted = set(chosen.values())
    try:
        model.eval()
        for parameter in required:
            parameter.requires_grad_(parameter in wanted)
        with torch.enable_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, requires in required.items():
            parameter.requires_grad_(requires)
