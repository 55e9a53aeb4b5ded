"""A strategy of a simulation: how the pool is scored, and how clips are chosen by the scores."""

from dataclasses import dataclass, replace
from typing import Literal

from speechkit.active_learning.selection import DIVERSE, METHODS, Method, SelectionConfig
from speechkit.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Query:
    """A strategy and how clips are selected by it.

    Attributes
    ----------
    name
        in the results.
    strategy
        a scorer with its parameters, or a cascade.
    method, per_second
        see `selection.SelectionConfig`.
    """

    name: str
    strategy: str
    method: Method = "top"
    per_second: bool = False

    @classmethod
    def parse(cls, text: str) -> "Query":
        """Read "egl", "egl:k=4/per_second" or "egl/kmeans++".

        Raises
        ------
        RequestError
            if what follows a slash is no method.
        """
        strategy, query = text, cls(name=text, strategy=text)
        while "/" in strategy:
            rest, word = strategy.rsplit("/", 1)
            if word == "per_second":
                query = replace(query, per_second=True)
            elif word in METHODS:
                query = replace(query, method=word)
            elif ":" in rest:
                break  # a folder among the parameters
            else:
                raise RequestError(
                    f"query {text!r}: {word!r} is none of per_second, {', '.join(METHODS)}"
                )
            strategy = rest
        return replace(query, strategy=strategy)

    @property
    def strategies(self) -> list[str]:
        """What the pool is scored by: the strategy, and the embeddings of a diverse choice."""
        return [self.strategy, *(["embedding"] if self.method in DIVERSE else [])]

    def selection(self, seed: int) -> SelectionConfig:
        """Return how to select from a table of scores."""
        # scores may be below 0, which weights cannot, and a few would take all the weight
        weights: Literal["utility", "rank"] = "utility" if self.method == "top" else "rank"
        return SelectionConfig(
            column=self.strategy,
            method=self.method,
            per_second=self.per_second,
            weights=weights,
            seed=seed,
        )
