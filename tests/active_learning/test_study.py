import pytest

from speechkit.active_learning.jsonl import write_rows
from speechkit.active_learning.results import results_path
from speechkit.active_learning.study import divide, fixed_best
from speechkit.errors import RequestError
from tests.active_learning.helpers import cut_of


def trial(folder, errors):
    rows = [
        {"strategy": name, "seed": seed, "share": 0.2, "wer": wer, "loss": loss}
        for name, seeds in errors.items()
        for seed, (wer, loss) in enumerate(seeds)
    ]
    write_rows(results_path(folder), rows)
    return folder


def test_the_lowest_mean_error_is_fixed_and_its_ties_go_to_the_lower_loss(tmp_path):
    results = trial(
        tmp_path,
        {
            "a": [(0.1, 0.5), (0.3, 0.7)],
            "b": [(0.3, 0.5), (0.1, 0.5)],
            "c": [(0.2, 0.4), (0.1, 0.9)],
            "other": [(0.0, 0.0)],
        },
    )
    fixed = tmp_path / "stage-2" / "forms.json"
    given = {"results": results, "among": ("a", "b", "c"), "count": 2}
    assert fixed_best(fixed, **given) == ["c", "b"]
    # what comes to light later changes nothing
    trial(tmp_path, {name: [(0.0, 0.0)] for name in "ad"})
    assert fixed_best(fixed, **given) == ["c", "b"]


@pytest.mark.parametrize("of_b", [[], [(0.2, 0.5)]])
def test_nothing_is_fixed_before_the_trial_ends(tmp_path, of_b):
    results = trial(tmp_path, {"a": [(0.1, 0.5), (0.5, 0.5)], "b": of_b})
    with pytest.raises(RequestError, match="lacks some of b to choose 1 forms by; let it end"):
        fixed_best(tmp_path / "forms.json", results=results, among=("a", "b"), count=1)
    assert not (tmp_path / "forms.json").exists()


def test_base_and_pool_share_no_clip_and_depend_on_the_seed_alone():
    clips = [cut_of(f"{i}") for i in range(20)]
    test = [cut_of("test")]
    split = divide(clips, test, base_share=0.2, seed=7)
    base, pool = ({c.id for c in part} for part in (split.base, split.pool))
    assert (len(base), len(pool)) == (4, 16)
    assert not base & pool
    again = divide(clips[::-1], test, base_share=0.2, seed=7)
    assert {c.id for c in again.base} == base
    assert {c.id for c in divide(clips, test, base_share=0.2, seed=8).base} != base


def test_a_share_that_leaves_no_base_is_refused():
    with pytest.raises(RequestError, match="leaves no base or no pool"):
        divide([cut_of("1"), cut_of("2")], [], base_share=0.1, seed=0)
