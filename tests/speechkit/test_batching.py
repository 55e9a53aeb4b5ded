import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import MonoCut
from torch.utils.data import DataLoader, Dataset

from speechkit.batching import BatchConfig, DurationBatches
from speechkit.errors import RequestError


def clips(durations):
    return [
        MonoCut(id=f"c{i:04d}", start=0, duration=float(d), channel=0, supervisions=[])
        for i, d in enumerate(durations)
    ]


def speech(count=397):
    return clips(np.random.default_rng(3).lognormal(1.0, 0.6, count).clip(0.3, 17).round(2))


def names(batches):
    return [[cut.id for cut in batch.cuts] for batch in batches]


@settings(max_examples=60, deadline=None)
@given(
    durations=st.lists(st.floats(0.05, 40), min_size=1, max_size=60),
    max_s=st.floats(5, 100),
    quadratic_s=st.none() | st.floats(1, 50),
    max_cuts=st.none() | st.integers(1, 7),
    world_size=st.integers(1, 4),
)
def test_every_cut_once_within_the_limits(durations, max_s, quadratic_s, max_cuts, world_size):
    config = BatchConfig(max_s=max_s, quadratic_s=quadratic_s, max_cuts=max_cuts, buckets=3)
    cuts = clips(durations)
    ranks = [
        DurationBatches(cuts, config, rank=rank, world_size=world_size).plan(2)
        for rank in range(world_size)
    ]
    assert len({len(plan) for plan in ranks}) == 1
    batches = list(itertools.chain(*ranks))
    for batch in batches:
        longest = max(config.cost_s(cut.duration) for cut in batch.cuts)
        assert len(batch.cuts) == 1 or longest * len(batch.cuts) <= max_s
        assert max_cuts is None or len(batch.cuts) <= max_cuts
    # ranks are made equal by whole batches that come twice, fewer than one each
    distinct = {tuple(cut.id for cut in batch.cuts) for batch in batches}
    assert sorted(itertools.chain(*distinct)) == [cut.id for cut in cuts]
    if len(distinct) >= world_size:
        assert len(batches) - len(distinct) < world_size


def test_the_plan_depends_on_seed_and_epoch_alone():
    cuts, config = speech(), BatchConfig(max_s=30)
    plan = names(DurationBatches(cuts, config, seed=4).plan(5))
    assert names(DurationBatches(cuts[::-1], config, seed=4).plan(5)) == plan
    assert names(DurationBatches(cuts, config, seed=5).plan(5)) != plan
    assert names(DurationBatches(cuts, config, seed=5).plan(4)) != plan
    epochs = [names(DurationBatches(cuts, config, seed=4).plan(epoch)) for epoch in range(3)]
    together = [{frozenset(batch) for batch in epoch} for epoch in epochs]
    assert len(set.union(*together)) > 0.9 * sum(map(len, together))


def efficiency(batches):
    """Return the share of the padded seconds that is no padding."""
    real = sum(cut.duration for batch in batches for cut in batch.cuts)
    return real / sum(batch.padded_s for batch in batches)


def test_little_padding_and_one_unfilled_batch():
    plan = DurationBatches(speech(), BatchConfig(max_s=40)).plan(0)
    assert efficiency(plan) > 0.9
    assert sum(batch.padded_s < 20 for batch in plan) <= 1
    loose = DurationBatches(speech(), BatchConfig(max_s=40, buckets=1)).plan(0)
    assert efficiency(loose) < 0.7


def test_ranks_get_like_durations_at_once():
    plans = [
        DurationBatches(speech(), BatchConfig(max_s=30), rank=rank, world_size=2).plan(1)
        for rank in range(2)
    ]
    longest = np.array([[max(c.duration for c in b.cuts) for b in plan] for plan in plans])
    assert np.median(np.abs(np.log(longest[0] / longest[1]))) < 0.15


def test_where_batches_run_out_ranks_still_get_like_durations():
    cuts = clips([1.0] * 30 + [15.0] * 2)
    config = BatchConfig(max_s=15, buckets=8)
    plans = [DurationBatches(cuts, config, rank=rank, world_size=3).plan(0) for rank in range(3)]
    longest = [[max(c.duration for c in b.cuts) for b in plan] for plan in plans]
    assert sorted(zip(*longest, strict=True)) == [(1.0, 1.0, 15.0), (15.0, 15.0, 15.0)]


def test_too_long():
    cuts = clips([2.0, 31.0, 3.0])
    alone = DurationBatches(cuts, BatchConfig(max_s=30)).plan(0)
    assert ["c0001"] in names(alone)
    with pytest.raises(RequestError, match=r"c0001: lasts 31\.00 s .* over max_s 30; raise max_s"):
        DurationBatches(cuts, BatchConfig(max_s=30, too_long="refuse"))
    DurationBatches(cuts, BatchConfig(max_s=31, too_long="refuse"))
    with pytest.raises(RequestError, match=r"counts for 127\.10 s"):
        DurationBatches(cuts, BatchConfig(max_s=31, quadratic_s=10, too_long="refuse"))


def test_what_is_refused():
    with pytest.raises(RequestError, match="no cuts"):
        DurationBatches([])
    with pytest.raises(RequestError, match="rank 2 of 2"):
        DurationBatches(speech(3), rank=2, world_size=2)
    wrong = ({"max_s": 0}, {"max_cuts": 0}, {"buckets": 0}, {"quadratic_s": -1}, {"too_long": "x"})
    for setting in wrong:
        with pytest.raises(RequestError, match=next(iter(setting))):
            BatchConfig(**setting)


class Ids(Dataset):
    def __getitem__(self, batch):
        return batch.epoch, batch.number, [cut.id for cut in batch.cuts]


def test_workers_do_not_change_what_is_read():
    def read(workers):
        batches = DurationBatches(speech(60), BatchConfig(max_s=30))
        batches.seek(3)
        return list(DataLoader(Ids(), batch_size=None, sampler=batches, num_workers=workers))

    assert read(0) == read(2)
    assert read(0)[0][:2] == [3, 0]
