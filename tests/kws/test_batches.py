"""Batches of scenes: reproducible, truly labelled, and of material that lacks something."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from speechkit.augment import Span, power
from speechkit.kws.batches import IGNORED, Batch, SceneBatches
from speechkit.kws.scenes import Material, SceneConfig
from tests.kws.helpers import clip_of, noise, padded_clip, samples, tone

HOP = 160
WINDOW = samples(1.5)
BACKGROUND, KEYWORD = 0, 1

POSITIVES = [
    (padded_clip(0.4 + 0.1 * i, before_s=0.3, after_s=0.2 * i, hz=2_000.0), KEYWORD)
    for i in range(3)
]
NEGATIVES = [
    (padded_clip(0.5 * (i + 1), before_s=0.2, hz=500.0), BACKGROUND) for i in range(3)
] + [(clip_of(tone(9.0, 500.0), id_="long"), BACKGROUND)]  # fmt: skip
MATERIAL = Material(
    positives=POSITIVES,
    negatives=NEGATIVES,
    noises=[clip_of(noise(7)), clip_of(noise(1, seed=1))],
    responses=[clip_of(np.exp(-np.arange(800) / 200).astype(np.float32) * noise(0.05, level=0.3))],
)
CONFIG = SceneConfig(scenes=5, windows=3)
# nothing that hides what was laid where
PLAIN = SceneConfig(
    scenes=4,
    windows=6,
    noise_probability=0.0,
    rir_probability=0.0,
    gain_db=(0.0, 0.0),
    speed_probability=0.0,
)


def batches(material=MATERIAL, config=CONFIG, *, seed=0, keywords=(KEYWORD,)):
    return SceneBatches(
        material, config, keyword_labels=frozenset(keywords), window_s=1.5, hop_s=0.01, seed=seed
    )


def only_keywords(config=PLAIN, **changes):
    return dataclasses.replace(config, positive_share=1.0, **changes)


def assert_equal(some: Batch, other: Batch):
    for field in dataclasses.fields(Batch):
        assert torch.equal(getattr(some, field.name), getattr(other, field.name))


def windows_of(batch):
    """Yield (audio of a window, its target)."""
    for audio, starts, targets in zip(batch.audio, batch.starts, batch.targets, strict=True):
        for start, target in zip(starts.tolist(), targets.tolist(), strict=True):
            yield audio[start * HOP : start * HOP + WINDOW].numpy(), target


def level_at(audio, hz, step=HOP):
    """Mean square of each hop's component at a frequency."""
    steps = audio[: len(audio) // step * step].reshape(-1, step)
    wave = np.exp(-2j * np.pi * hz / 16_000 * np.arange(step))
    return np.abs(steps @ wave / step) ** 2


def test_shapes_and_types():
    batch = batches()[0]
    assert batch.audio.shape == (5, samples(4.0))
    assert (batch.audio.dtype, batch.starts.dtype, batch.targets.dtype) == (
        torch.float32,
        torch.int64,
        torch.int64,
    )
    assert batch.starts.shape == batch.targets.shape == (5, 3)
    assert torch.isfinite(batch.audio).all()


def test_windows_to_choose_from_lie_all_along_scenes_without_a_keyword():
    dataset = batches(config=dataclasses.replace(PLAIN, scenes=8))
    for step in range(10):
        batch = dataset[step]
        whole = [level_at(scene.numpy(), 2_000.0).max() > 1e-3 for scene in batch.audio]
        assert batch.free.tolist() == [slot for slot, keyword in enumerate(whole) if not keyword]
        assert batch.others.shape == batch.other_targets.shape == (len(batch.free), 8)
        assert (batch.other_targets == BACKGROUND).all()
        assert (batch.others * HOP >= samples(1.0)).all()
        assert (batch.others * HOP + WINDOW <= samples(4.0)).all()
        assert (batch.others.diff(dim=1) == 20).all()
    none = batches(Material(positives=POSITIVES, negatives=[]), only_keywords())[0]
    assert none.others.shape == none.other_targets.shape == (0, 8)


def test_a_noise_may_give_way_to_another():
    """One noise is a low tone, the other a high one: both are in a scene, but not at once."""
    noises = [clip_of(tone(5.0, hz)) for hz in (500.0, 5_000.0)]
    config = dataclasses.replace(
        PLAIN,
        positive_share=0.0,
        noise_share=1.0,
        noise_probability=1.0,
        second_noise_probability=0.0,
        babble_probability=0.0,
        noise_speed=(1.0, 1.0),
        snr_db=(0.0, 0.0),
    )
    material = Material(positives=POSITIVES, negatives=[], noises=noises)
    for probability, most in ((0.0, 1), (1.0, 2)):
        dataset = batches(
            material, dataclasses.replace(config, noise_change_probability=probability)
        )
        kinds = set()
        for scene in dataset[0].audio.numpy():
            low, high = (level_at(scene, hz)[5:-5] > 1e-4 for hz in (500.0, 5_000.0))
            assert (low & high).sum() <= 1  # the hop in which it changes
            kinds.add(int(low.any()) + int(high.any()))
        assert max(kinds) == most


def test_a_batch_is_a_function_of_seed_and_step_alone():
    one, other = batches(), batches()
    wanted = [one[step] for step in (0, 1, 7)]
    # another order, and repeated
    for step, batch in ((7, wanted[2]), (0, wanted[0]), (1, wanted[1]), (0, wanted[0])):
        assert_equal(other[step], batch)
    assert not torch.equal(wanted[0].audio, wanted[1].audio)
    assert not torch.equal(batches(seed=1)[0].audio, wanted[0].audio)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_neither_batches_nor_their_order(workers):
    dataset = batches(config=SceneConfig(scenes=2, windows=2))
    loader = DataLoader(dataset, batch_size=None, sampler=range(3, 8), num_workers=workers)
    found = list(loader)
    assert len(found) == 5
    for step, batch in zip(range(3, 8), found, strict=True):
        assert_equal(batch, dataset[step])


@pytest.mark.parametrize("warmup_s", [0.0, 1.0, 1.5])
def test_windows_lie_behind_the_warm_up_and_within_the_scene(warmup_s):
    dataset = batches(config=dataclasses.replace(CONFIG, warmup_s=warmup_s, length_s=4.5))
    starts = torch.cat([dataset[step].starts for step in range(20)])
    assert starts.min() * HOP >= samples(warmup_s)
    assert starts.max() * HOP + WINDOW <= samples(4.5)
    # and use all of that room
    assert starts.min() * HOP < samples(warmup_s) + samples(0.5)
    assert starts.max() * HOP + WINDOW > samples(4.0)


def test_all_windows_but_one_hold_the_keyword_wholly():
    dataset = batches(config=only_keywords())
    for step in range(5):
        assert (dataset[step].targets[:, 1:] == KEYWORD).all()


def test_labels_say_how_much_of_the_keyword_a_window_holds():
    config = only_keywords(neighbour_probability=0.0)
    dataset = batches(Material(positives=POSITIVES, negatives=[]), config)
    seen = {KEYWORD: 0, IGNORED: 0, BACKGROUND: 0}
    for step in range(40):
        batch = dataset[step]
        for scene, starts, targets in zip(batch.audio, batch.starts, batch.targets, strict=True):
            sounding = level_at(scene.numpy(), 2_000.0) > 1e-3
            for start, target in zip(starts.tolist(), targets.tolist(), strict=True):
                inside = sounding[start : start + 150].sum() / sounding.sum()
                seen[target] += 1
                # three hops of slack: the utterance starts anywhere, also in mid-hop
                slack = 3 / sounding.sum()
                if target == KEYWORD:
                    assert inside >= 1 - slack
                elif target == IGNORED:
                    assert 0.5 - slack <= inside <= 1
                else:
                    assert inside <= 0.5 + slack
    assert min(seen.values()) >= 5


def test_the_keyword_lies_within_the_jitter_of_the_centre():
    dataset = batches(config=only_keywords(jitter_s=0.1, neighbour_probability=0.0))
    centres = []
    for step in range(10):
        batch = dataset[step]
        for scene, starts in zip(batch.audio, batch.starts, strict=True):
            sounding = np.flatnonzero(level_at(scene.numpy(), 2_000.0) > 1e-3)
            centre_s = (sounding[0] + sounding[-1] + 1) / 2 * 0.01
            centres += [centre_s - (start * 0.01 + 0.75) for start in starts[1:].tolist()]
    assert np.abs(centres).max() < 0.1 + 0.02
    assert np.std(centres) > 0.03


def test_neighbours_are_other_speech_beside_the_keyword_never_over_it():
    dataset = batches(config=only_keywords(neighbour_probability=1.0))
    beside = 0
    for step in range(10):
        for scene in dataset[step].audio.numpy():
            keyword = level_at(scene, 2_000.0) > 1e-3
            other = level_at(scene, 500.0) > 1e-3
            assert keyword.any()
            first, last = np.flatnonzero(keyword)[[0, -1]]
            # but for the hops in which one ends and the other begins
            assert not other[first + 2 : last - 1].any()
            beside += other.any()
    assert beside > 30


def test_without_neighbours_a_keyword_stands_alone():
    dataset = batches(config=only_keywords(neighbour_probability=0.0))
    for step in range(3):
        for scene in dataset[step].audio.numpy():
            assert not (level_at(scene, 500.0) > 1e-3).any()


def test_the_slots_share_out_the_kinds():
    hard = [(padded_clip(0.5, hz=4_000.0, id_="hard"), BACKGROUND)]
    config = dataclasses.replace(
        PLAIN, scenes=20, positive_share=0.4, hard_share=0.2, noise_share=0.1,
        neighbour_probability=0.0,
    )  # fmt: skip

    def kinds(material):
        found = []
        for scene in batches(material, config)[0].audio.numpy():
            sounds = {hz: (level_at(scene, hz) > 1e-3).any() for hz in (500.0, 2e3, 4e3)}
            found.append(tuple(hz for hz, there in sounds.items() if there))
        return [found.count(kind) for kind in ((2e3,), (4e3,), (500.0,), ())]

    assert kinds(dataclasses.replace(MATERIAL, hard=hard)) == [8, 4, 6, 2]
    assert kinds(MATERIAL) == [8, 0, 10, 2]


def test_every_kind_has_its_share_by_default():
    """Of 16 scenes a twentieth is none in most batches, and one in the others."""
    kinds = ("keyword", "mined", "empty", "speech")
    counts = dict.fromkeys(kinds, 0)
    material = dataclasses.replace(MATERIAL, hard=[(padded_clip(0.5), BACKGROUND)])
    some = batches(material, SceneConfig())
    for kind in kinds:
        build = getattr(some.scenes, f"_{kind}")

        def counted(rng, kind=kind, build=build):
            counts[kind] += 1
            return build(rng)

        setattr(some.scenes, f"_{kind}", counted)
    steps = 100
    for step in range(steps):
        some[step]
    shares = {kind: count / (16 * steps) for kind, count in counts.items()}
    expected = {"keyword": 0.4, "mined": 0.2, "empty": 0.05, "speech": 0.35}
    assert shares == pytest.approx(expected, abs=0.01)


MINED = padded_clip(0.5, before_s=3.0, after_s=3.0, hz=4_000.0, id_="mined")


def mined_only(config=PLAIN):
    config = dataclasses.replace(config, scenes=12, positive_share=0.0, hard_share=1.0)
    return batches(dataclasses.replace(MATERIAL, hard=[(MINED, BACKGROUND)]), config)[0]


def test_windows_about_a_mined_false_alarm_are_negatives_that_hold_it():
    batch = mined_only()
    assert (batch.targets == BACKGROUND).all()
    assert len(batch.free) == len(batch.audio)
    for number, (audio, _) in enumerate(windows_of(batch)):
        if number % PLAIN.windows:
            assert (level_at(audio, 4_000.0) > 1e-3).sum() == pytest.approx(50, abs=2)


def test_half_of_the_mined_false_alarms_stay_as_they_were_heard():
    config = dataclasses.replace(PLAIN, noise_probability=1.0, rir_probability=1.0)
    quiet = [float(audio.abs().min()) == 0.0 for audio in mined_only(config).audio]
    assert 2 <= sum(quiet) <= 10


@pytest.mark.parametrize(
    "lacking", [("noises",), ("responses",), ("negatives",), ("noises", "responses", "negatives")]
)
def test_material_may_lack_what_only_worsens(lacking):
    material = dataclasses.replace(MATERIAL, **{name: [] for name in lacking})
    for step in range(4):
        batch = batches(material)[step]
        assert torch.isfinite(batch.audio).all()
        assert (batch.targets == KEYWORD).any()


def test_silent_material_gives_finite_scenes():
    silent = clip_of(np.zeros(samples(1.0), np.float32))
    material = Material(
        positives=[(silent, KEYWORD)], negatives=[(silent, BACKGROUND)], noises=[silent],
        responses=[silent],
    )  # fmt: skip
    config = dataclasses.replace(CONFIG, rir_probability=1.0, neighbour_probability=1.0)
    assert torch.isfinite(batches(material, config)[0].audio).all()


@pytest.mark.parametrize("length_s", [1.49, 1.6, 3.0])
def test_a_keyword_as_long_as_the_window_or_longer(length_s):
    material = Material(positives=[(clip_of(tone(length_s, 2_000.0)), KEYWORD)], negatives=[])
    batch = batches(material, only_keywords(speed_probability=1.0))[0]
    assert (batch.targets[:, 1:] == KEYWORD).all()


def test_noise_lies_at_the_snr_over_the_keyword():
    config = only_keywords(neighbour_probability=0.0)
    clean = batches(config=config)[0].audio.numpy()
    for snr_db in (-5.0, 15.0):
        noisy = dataclasses.replace(config, noise_probability=1.0, snr_db=(snr_db, snr_db))
        for before, after in zip(clean, batches(config=noisy)[0].audio.numpy(), strict=True):
            sounding = np.flatnonzero(before)
            speech = power(before[sounding[0] : sounding[-1] + 1])
            measured = 10 * np.log10(speech / power(after - before))
            assert measured == pytest.approx(snr_db, abs=0.2)


def test_the_whole_scene_changes_level():
    plain = batches(config=PLAIN)[0]
    louder = batches(config=dataclasses.replace(PLAIN, gain_db=(-20.0, -20.0)))[0]
    torch.testing.assert_close(louder.audio, 0.1 * plain.audio)
    assert torch.equal(louder.targets, plain.targets)


def test_twelve_classes():
    """Two keywords, _silence_ 0 and _unknown_ 1: every window gets the label of what it holds."""
    silence, unknown = 0, 1
    pitch = {2: 2_000.0, 3: 4_000.0}
    material = Material(
        positives=[(padded_clip(0.5, hz=hz), label) for label, hz in pitch.items()],
        negatives=[(padded_clip(0.5, hz=500.0), unknown)],
        silence=silence,
    )
    config = dataclasses.replace(PLAIN, scenes=8, noise_share=0.2, neighbour_probability=0.0)
    dataset = batches(material, config, keywords=pitch)
    seen = set()
    for step in range(8):
        for audio, target in windows_of(dataset[step]):
            seen.add(target)
            sounds = {hz for hz in (500.0, 2e3, 4e3) if (level_at(audio, hz) > 1e-3).any()}
            if target in pitch:
                assert sounds == {pitch[target]}
            elif target == unknown:
                assert sounds <= {500.0}
            elif target == silence:
                assert 500.0 not in sounds or (level_at(audio, 500.0) > 1e-3).sum() < 3
    assert seen == {silence, unknown, 2, 3, IGNORED}


def test_spans_of_the_clip_decide_not_its_length():
    """Speech at the end of a long clip: the windows follow the span."""
    audio = np.concatenate([noise(5, level=0.001), tone(0.5, 2_000.0)])
    clip = clip_of(audio, span=Span(samples(5), samples(5.5)))
    batch = batches(Material(positives=[(clip, KEYWORD)], negatives=[]), only_keywords())[0]
    keywords = [audio for audio, target in windows_of(batch) if target == KEYWORD]
    assert len(keywords) >= 10
    for audio in keywords:
        assert (level_at(audio, 2_000.0) > 1e-3).sum() >= 48


def test_a_long_clip_is_speech_outside_its_loudest_stretch_too():
    loud, pause, soft = tone(2.0, 500.0), noise(1.0, level=1e-4), tone(4.0, 500.0, level=0.1)
    span = Span(samples(5), samples(7))
    clip = clip_of(np.concatenate([soft, pause, loud, pause, soft]), span=span)
    silence, unknown = 0, 1
    material = Material(positives=POSITIVES, negatives=[(clip, unknown)], silence=silence)
    config = dataclasses.replace(PLAIN, positive_share=0.0, noise_share=0.0)
    dataset = batches(material, config, keywords=(2,))
    for step in range(5):
        assert all(target == unknown for _, target in windows_of(dataset[step]))


def test_of_long_clips_no_more_is_decoded_than_a_scene_holds():
    """Half an hour of floats would be 115 MB, and every scene would wait for it."""
    long = clip_of(np.tile(tone(1.0, 500.0), 1800), id_="half an hour")
    material = dataclasses.replace(MATERIAL, negatives=[(long, BACKGROUND)], noises=[long])
    config = dataclasses.replace(CONFIG, babble_probability=0.3, neighbour_probability=1.0)
    dataset = batches(material, config)
    tracemalloc.start()
    for step in range(4):
        dataset[step]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6
