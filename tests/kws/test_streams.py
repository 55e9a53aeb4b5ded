"""Streams to measure on: what lies where, at which level, and how much of it."""

import numpy as np
import pytest

from speechkit.augment import Span, active_power, power
from speechkit.errors import RequestError
from speechkit.kws.streams import background_stream, keyword_streams, negative_streams
from tests.kws.helpers import clip_of, noise, padded_clip, samples, tone

KEYWORDS = [
    padded_clip(0.4 + 0.1 * i, before_s=0.2 * i, id_=f"k{i}", hz=400.0 + 100 * i) for i in range(4)
]
NOISES = [clip_of(noise(9, level=0.1), id_="long"), clip_of(noise(2, seed=1, level=0.01))]
SILENT = clip_of(np.zeros(samples(1.0), np.float32), id_="silent")


def db(ratio):
    return 10 * np.log10(ratio)


def test_each_keyword_has_a_stream_with_a_lead_and_a_tail():
    streams = list(keyword_streams(KEYWORDS, [], snr_db=None, seed=0))
    assert len(streams) == len(KEYWORDS)
    for clip, stream in zip(KEYWORDS, streams, strict=True):
        (piece,) = stream.pieces
        assert (piece.id, piece.offset) == (clip.id, samples(1.5))
        assert len(stream.audio) == len(clip.samples) + samples(3.1)
        assert stream.audio.dtype == np.float32
        inside = slice(piece.span.start, piece.span.end)
        np.testing.assert_array_equal(
            stream.audio[inside], clip.audio[clip.span.start : clip.span.end]
        )
        outside = np.delete(stream.audio, np.arange(piece.span.start, piece.span.end))
        assert not outside.any()


@pytest.mark.parametrize("noises", [NOISES, []], ids=["recorded", "white"])
def test_the_same_noise_at_every_snr(noises):
    clean = list(keyword_streams(KEYWORDS, noises, snr_db=None, seed=3))
    added = {}
    for snr_db in (-5.0, 5.0, 20.0):
        noisy = list(keyword_streams(KEYWORDS, noises, snr_db=snr_db, seed=3))
        added[snr_db] = [a.audio - b.audio for a, b in zip(noisy, clean, strict=True)]
        assert [s.pieces for s in noisy] == [s.pieces for s in clean]
        for stream, extra in zip(clean, added[snr_db], strict=True):
            span = stream.pieces[0].span
            speech = power(stream.audio[span.start : span.end])
            assert db(speech / power(extra)) == pytest.approx(snr_db, abs=0.01)
    for low, high in zip(added[-5.0], added[20.0], strict=True):
        np.testing.assert_allclose(low, high * 10 ** (25 / 20), atol=1e-5)
    assert np.corrcoef(added[5.0][0][:50_000], added[5.0][1][:50_000])[0, 1] < 0.1


def test_a_stream_depends_on_the_seed_and_its_place_alone():
    first = list(keyword_streams(KEYWORDS, NOISES, snr_db=5.0, seed=1))
    again = list(keyword_streams(KEYWORDS, NOISES, snr_db=5.0, seed=1))
    other = list(keyword_streams(KEYWORDS, NOISES, snr_db=5.0, seed=2))
    fewer = list(keyword_streams(KEYWORDS[:2], NOISES, snr_db=5.0, seed=1))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.audio, b.audio)
    for a, b in zip(first, fewer, strict=False):
        np.testing.assert_array_equal(a.audio, b.audio)
    assert any((a.audio != b.audio).any() for a, b in zip(first, other, strict=True))


def marked(index, seconds):
    """A clip of one constant value, so that it can be recognised in a stream."""
    return clip_of(np.full(samples(seconds), (index + 1) / 200, np.float32), id_=f"c{index}")


def test_every_negative_is_heard_exactly_once():
    clips = [marked(i, 20 + i % 7) for i in range(60)]
    streams = list(negative_streams(clips, [], snr_db=None, seed=0))
    assert len(streams) > 3
    assert sum(len(s.audio) for s in streams) == sum(len(c.samples) for c in clips)
    pieces = [(stream, piece) for stream in streams for piece in stream.pieces]
    assert sorted(p.id for _, p in pieces) == sorted(c.id for c in clips)
    assert [p.id for _, p in pieces] != [c.id for c in clips]
    by_id = {c.id: c for c in clips}
    for stream, piece in pieces:
        clip = by_id[piece.id]
        np.testing.assert_array_equal(
            stream.audio[piece.offset : piece.offset + len(clip.samples)], clip.audio
        )
        assert piece.span == clip.span.shifted(piece.offset)
    # whole clips, up to five minutes or a little more
    for stream in streams[:-1]:
        assert samples(300) <= len(stream.audio) < samples(327)


def test_negatives_meet_the_same_noise_in_the_same_order_at_every_snr():
    clips = [padded_clip(id_=f"{i}", hz=300 + 50 * i) for i in range(5)] + [SILENT]
    (clean,) = negative_streams(clips, NOISES, snr_db=None, seed=2)
    (noisy,) = negative_streams(clips, NOISES, snr_db=0.0, seed=2)
    (quiet,) = negative_streams(clips, NOISES, snr_db=20.0, seed=2)
    assert noisy.pieces == clean.pieces == quiet.pieces
    np.testing.assert_allclose(
        noisy.audio - clean.audio, 10 * (quiet.audio - clean.audio), atol=1e-5
    )
    for piece in noisy.pieces:
        inside = slice(piece.offset, piece.offset + samples(1.0 if piece.id == "silent" else 1.6))
        speech, extra = clean.audio[inside], (noisy.audio - clean.audio)[inside]
        if piece.id == "silent":
            assert not extra.any()
        else:
            assert db(active_power(speech) / power(extra)) == pytest.approx(0.0, abs=0.01)


def test_silent_and_missing_clips_do_no_harm():
    assert list(keyword_streams([], NOISES, snr_db=5.0, seed=0)) == []
    assert list(negative_streams([], NOISES, snr_db=5.0, seed=0)) == []
    (stream,) = keyword_streams([SILENT], [SILENT], snr_db=5.0, seed=0)
    assert not stream.audio.any()
    (stream,) = keyword_streams(KEYWORDS[:1], [SILENT], snr_db=5.0, seed=0)
    assert stream.audio[0] != 0  # white noise in place of none
    stream = background_stream([SILENT], [SILENT], [SILENT], hours=0.005, snr_db=5.0)
    assert np.isfinite(stream.audio).all()


def test_noise_is_drawn_where_it_sounds():
    """Of a minute a tenth is noise: no keyword is heard clean under the name of an SNR."""
    gaps = clip_of(np.concatenate([noise(6, level=0.1), np.zeros(samples(54.0), np.float32)]))
    for stream in keyword_streams(KEYWORDS * 20, [gaps], snr_db=5.0, seed=0):
        assert stream.audio[: samples(1.5)].any() or stream.audio[-samples(1.6) :].any()


BACKGROUNDS = [clip_of(noise(3, seed=i, level=0.05), id_=f"b{i}") for i in range(3)]


def test_a_background_stream_holds_each_keyword_once_at_one_level():
    stream = background_stream(KEYWORDS, BACKGROUNDS, [], hours=0.02, snr_db=None, seed=4)
    spoken = sum(len(c.samples) for c in KEYWORDS)
    assert len(stream.audio) == pytest.approx(samples(72) + spoken, abs=5)
    assert sorted(p.id for p in stream.pieces) == ["k0", "k1", "k2", "k3"]
    by_id = {c.id: c for c in KEYWORDS}
    ends = 0
    for piece in stream.pieces:
        clip = by_id[piece.id]
        # stretches of equal length lie between
        assert piece.offset - ends == pytest.approx(samples(72) / 5, abs=1)
        ends = piece.offset + len(clip.samples)
        assert piece.span == clip.span.shifted(piece.offset)
        heard = stream.audio[piece.span.start : piece.span.end]
        wanted = clip.audio[clip.span.start : clip.span.end]
        assert db(power(heard)) == pytest.approx(-26.0, abs=1e-3)
        assert np.corrcoef(heard, wanted)[0, 1] == pytest.approx(1.0)
    background = stream.audio[: stream.pieces[0].offset]
    assert 0.02 < np.mean(background != 0) < 0.9


@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_every_keyword_meets_its_snr_however_loud_the_recordings_of_noise(snr_db):
    """Noises 40 dB apart: each keyword must still lie at the SNR that was asked for."""
    noises = [clip_of(noise(5, level=0.3)), clip_of(noise(5, seed=1, level=0.003))]
    options = {"hours": 0.02, "seed": 5}
    clean = background_stream(KEYWORDS, BACKGROUNDS, noises, snr_db=None, **options)
    noisy = background_stream(KEYWORDS, BACKGROUNDS, noises, snr_db=snr_db, **options)
    assert noisy.pieces == clean.pieces
    extra = noisy.audio - clean.audio
    for piece in clean.pieces:
        inside = slice(piece.span.start, piece.span.end)
        measured = db(power(clean.audio[inside]) / power(extra[inside]))
        assert measured == pytest.approx(snr_db, abs=0.5)


def test_a_larger_share_makes_more_of_the_background_audible():
    loud, quiet = (
        background_stream(
            KEYWORDS, BACKGROUNDS, [], hours=0.1, snr_db=None, speech_share=share, seed=1
        )
        for share in (0.8, 0.0)
    )
    covered = sum(len(c.samples) for c in KEYWORDS) / len(quiet.audio)
    assert np.mean(quiet.audio != 0) < covered
    assert 0.65 < np.mean(loud.audio != 0) < 0.95


@pytest.mark.parametrize("lacking", ["keywords", "backgrounds"])
def test_a_background_stream_of_nothing_is_refused(lacking):
    given = {"keywords": KEYWORDS, "backgrounds": BACKGROUNDS} | {lacking: []}
    with pytest.raises(RequestError, match=f"0 {lacking}"):
        background_stream(*given.values(), NOISES, hours=1, snr_db=5.0)


@pytest.mark.parametrize("hours", [0, -1.0])
def test_hours_must_be_positive(hours):
    with pytest.raises(RequestError, match="hours"):
        background_stream(KEYWORDS, BACKGROUNDS, NOISES, hours=hours, snr_db=5.0)


def test_spans_of_a_clip_with_speech_at_its_very_edge():
    clip = clip_of(tone(0.5), span=Span(0, samples(0.5)))
    (stream,) = keyword_streams([clip], [], snr_db=5.0, seed=0)
    assert stream.pieces[0].span == Span(samples(1.5), samples(2.0))
