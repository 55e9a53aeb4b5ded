"""Transcribing: any recording there may be, in one pass, in chunks, in pieces."""

import dataclasses
import io
import json
import math
import re
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit import cli
from speechkit.asr import DecodingConfig, Recogniser, Transcriber, kneser_ney, tune_lm
from speechkit.asr.confidence import Calibration
from speechkit.asr.decoding import pieces_at_blanks
from speechkit.asr.scoring import Transcript, score
from speechkit.asr.tokenizer import Bytes, Characters, SentencePieces
from speechkit.audio import SAMPLE_RATE, load, write_audio
from speechkit.errors import AudioError, JobError, RequestError
from speechkit.features import Inputs
from tests.asr.speech import SMALL, recogniser


@pytest.fixture(scope="module")
def transcriber(trained):
    return Transcriber.load(trained)


@pytest.fixture
def clip(corpus):
    cut = next(iter(corpus[0]))
    return cut, cut.recording.sources[0].source, cut.supervisions[0].text.lower()


def wer(transcriber, cuts):
    return score(
        Transcript(cut.id, transcriber.recogniser.reference(cut), transcriber.transcribe(cut).text)
        for cut in cuts
    ).words.rate


def test_path_samples_and_cut_give_the_same(transcriber, clip):
    cut, path, text = clip
    samples = load(path)
    pcm = (samples * 32768).astype(np.int16)
    found = [transcriber.transcribe(one) for one in (cut, path, samples, pcm)]
    assert [one.text for one in found] == [text] * 4
    hypothesis = found[0]
    assert len(hypothesis.tokens) == len(hypothesis.times) == len(text)
    assert list(hypothesis.times) == sorted(hypothesis.times)
    assert [word.text for word in hypothesis.words] == text.split()
    assert 0 < hypothesis.confidence <= 1
    assert hypothesis.words[-1].end_s <= cut.duration + transcriber.recogniser.frame_s


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_any_rate_and_number_of_channels(transcriber, clip, tmp_path, rate):
    import soxr

    _, path, text = clip
    samples = soxr.resample(load(path), SAMPLE_RATE, rate)
    soundfile.write(tmp_path / "x.wav", np.stack([samples, samples], axis=1), rate)
    found = transcriber.transcribe(tmp_path / "x.wav").text
    # the highest tone of these clips is near half of 8 kHz
    errors = score([Transcript("x", " ".join(text), " ".join(found))]).words
    assert errors.rate <= (0.0 if rate > SAMPLE_RATE else 0.34)


@pytest.mark.parametrize(
    "samples", [np.zeros(0), np.zeros(20_000), np.zeros(5), 2e-5 * np.ones(9_000)]
)
def test_nothing_to_hear_is_an_empty_transcript(transcriber, tmp_path, samples):
    samples = samples.astype(np.float32)
    soundfile.write(tmp_path / "x.wav", samples, SAMPLE_RATE)
    for recording in (samples, tmp_path / "x.wav"):
        hypothesis = transcriber.transcribe(recording)
        assert (hypothesis.text, hypothesis.tokens, hypothesis.words) == ("", (), ())


@pytest.mark.parametrize("searching", [False, True])
def test_a_clip_shorter_than_a_frame(trained, searching):
    transcriber = Transcriber.load(trained, DecodingConfig(beam=4 if searching else 1))
    hypothesis = transcriber.transcribe(0.1 * np.ones(3, dtype=np.float32))
    assert len(hypothesis.tokens) <= 1


def test_confidences_are_the_calibrated_ones(trained, clip):
    model, calibration = Recogniser.load(trained), Calibration(slope=0.5, offset=-1.0)
    plain, scaled = (
        Transcriber(model.with_calibration(one)).transcribe(clip[1])
        for one in (Calibration(), calibration)
    )
    assert plain.words
    expected = calibration([word.confidence for word in plain.words])
    assert [word.confidence for word in scaled.words] == pytest.approx(list(expected))
    assert scaled.confidence == pytest.approx(expected.mean())
    assert scaled.text == plain.text


def test_a_recording_that_was_not_closed_is_not_silence(transcriber, clip, tmp_path):
    path = tmp_path / "unclosed.wav"
    write_audio(path, load(clip[1]))
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes(4) + whole[44:])
    with pytest.raises(AudioError, match="the recording was not closed"):
        transcriber.transcribe(path)


def test_a_cut_without_a_recording_is_not_silence(transcriber, clip):
    cut = dataclasses.replace(clip[0], recording=None)
    with pytest.raises(AudioError, match="has no audio"):
        transcriber.transcribe(cut)


def test_what_is_no_audio_is_named(transcriber, tmp_path):
    with pytest.raises(AudioError, match="NaN"):
        transcriber.transcribe(np.full(100, np.nan))
    with pytest.raises(AudioError, match=r"1e\+25"):
        transcriber.transcribe(np.full(9_000, 1e25))
    (tmp_path / "x.wav").write_text("not audio")
    with pytest.raises(AudioError, match=r"x\.wav"):
        transcriber.transcribe(tmp_path / "x.wav")
    with pytest.raises(AudioError, match="no such file"):
        transcriber.transcribe(tmp_path / "y.wav")


def test_chunks_merge_to_what_one_pass_gives(trained, corpus):
    """Frames are the same but for a few, whose surroundings a chunk does not hold."""
    clips = [load(cut.recording.sources[0].source) for cut in corpus[0]]
    joined = np.concatenate(clips)
    config = DecodingConfig(chunk_s=3.0, overlap_s=1.5)
    one_pass, chunked = (
        Transcriber.load(trained, decoding).log_probs(joined)
        for decoding in (DecodingConfig(), config)
    )
    assert one_pass.shape == chunked.shape
    assert (one_pass.argmax(-1) == chunked.argmax(-1)).float().mean() > 0.97


@given(
    frames=st.integers(1, 400),
    chunk_s=st.sampled_from([0.1, 0.5, 1.0, 7.0]),
    share=st.floats(0, 0.95),
)
@settings(max_examples=60, deadline=None)
def test_chunks_cover_every_frame_once(frames, chunk_s, share):
    config = DecodingConfig(chunk_s=chunk_s, overlap_s=chunk_s * share)
    transcriber = Transcriber(recogniser(), config)
    covered = []
    for start, end, keep in transcriber._spans(frames):
        assert 0 <= start < end <= frames
        outs = range(start // 2, start // 2 + -(-(end - start) // 2))
        covered += list(outs)[keep]
    assert covered == list(range(-(-frames // 2)))


def test_dense_encoders_take_chunks_by_themselves():
    dense = Transcriber(recogniser(dataclasses.replace(SMALL, patterns=("Dense()",))))
    sparse = Transcriber(recogniser())
    long = 100 * 60
    assert len(list(dense._spans(long))) > 1
    assert len(list(sparse._spans(long))) == 1


@pytest.mark.parametrize(
    ("patterns", "one_pass"),
    [
        (("Local(64)", "Strided(64)"), True),
        (("Merged(Local(64), Strided(64))", "Fixed(64, 4)"), True),
        (("Local(64)", "Dense()"), False),
        (("Merged(Dense(), Local(8))",), False),
        (("PerHead(Dense(), Local(8))",), False),
        (("Strided(1)",), False),
        (("Fixed(8, 8)",), False),
    ],
)
def test_what_is_nearly_dense_counts_as_dense(patterns, one_pass):
    config = dataclasses.replace(SMALL, patterns=patterns)
    assert recogniser(config).network.in_one_pass == one_pass


def test_a_lexicon_and_a_language_model_are_obeyed(trained, corpus, tmp_path):
    from speechkit.asr import kneser_ney

    cuts = list(corpus[0])
    texts = [cut.supervisions[0].text.lower() for cut in cuts]
    words = sorted({word for text in texts for word in text.split()})
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n")
    kneser_ney.train(texts).save(tmp_path / "lm.arpa")
    lexicon = Transcriber.load(trained, DecodingConfig(lexicon=tmp_path / "words.txt", beam=8))
    assert wer(lexicon, cuts[:4]) == 0
    both = DecodingConfig(lexicon=tmp_path / "words.txt", lm=tmp_path / "lm.arpa")
    assert wer(Transcriber.load(trained, both), cuts[:4]) == 0
    (tmp_path / "other.txt").write_text("dd\n")
    only = Transcriber.load(trained, DecodingConfig(lexicon=tmp_path / "other.txt"))
    marked = tmp_path / "marked.txt"
    marked.write_text("\ufeff" + "\n".join(words), encoding="utf-8")
    assert wer(Transcriber.load(trained, DecodingConfig(lexicon=marked, beam=8)), cuts[:4]) == 0
    marked.write_text("dd\nab cd\n")
    with pytest.raises(RequestError, match=r"marked.txt, line 2: 'ab cd' is not one word"):
        Transcriber.load(trained, DecodingConfig(lexicon=marked))
    found = {word for cut in cuts for word in only.transcribe(cut).text.split()}
    assert found <= {"dd"}


def test_where_nothing_whole_is_left_the_last_word_goes(trained, monkeypatch):
    """As where all legal hypotheses have vanished among the smallest numbers there are."""
    from speechkit import ctc_beam

    transcriber = Transcriber.load(trained, DecodingConfig(beam=2))
    tokens = tuple(transcriber.recogniser.tokenizer.encode("ab cd a"))
    marked = ctc_beam.Hypothesis(tokens, -3.0, -math.inf)
    monkeypatch.setattr(ctc_beam, "beam_search", lambda *_, **__: [[marked]])
    log_probs = torch.zeros(10, transcriber.recogniser.tokenizer.size)
    assert transcriber.recogniser.text_of(transcriber._tokens(log_probs)) == "ab cd"


def test_given_weights_override_those_of_the_models_own_language_model(trained, tmp_path):
    from speechkit.asr import kneser_ney
    from speechkit.asr.decoding import attach_language_model

    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    attach_language_model(folder, kneser_ney.train(["ab cd"]), lm_weight=0.4, word_bonus=1.0)

    def settings(**given):
        config = Transcriber.load(folder, DecodingConfig(**given)).config
        return config.beam, config.lm_weight, config.word_bonus

    assert settings() == (16, 0.4, 1.0)
    assert settings(lm_weight=3.0, beam=1) == (1, 3.0, 1.0)
    assert settings(word_bonus=0.0) == (16, 0.4, 0.0)
    assert settings(lm=folder / "lm.arpa") == (16, 0.5, 0.0)
    assert settings(own_lm=False)[0] == 1


def test_weights_without_a_language_model_and_chunks_below_a_frame_are_refused(trained, clip):
    with pytest.raises(RequestError, match="lm_weight 3, word_bonus 1: there is no language"):
        Transcriber.load(trained, DecodingConfig(lm_weight=3.0, word_bonus=1.0))
    short = Transcriber.load(trained, DecodingConfig(chunk_s=0.001, overlap_s=0.0))
    with pytest.raises(RequestError, match=r"chunk_s 0.001: is less than a frame of 0.\d+ s"):
        short.transcribe(clip[0])


def test_times_are_the_middles_of_what_a_frame_hears(trained, corpus):
    """A click is heard most by the frame whose stated time is nearest to it."""
    recogniser = Recogniser.load(trained)
    frontend = recogniser.inputs.frontend
    assert recogniser.first_frame_s == 0
    audio = torch.zeros(1, SAMPLE_RATE)
    audio[0, round(0.5 * SAMPLE_RATE)] = 1.0
    energies, _ = frontend(audio)
    heard = (energies[0] - energies[0, 0]).abs().sum(dim=1)
    assert int(heard.argmax()) * recogniser.inputs.hop_s == pytest.approx(0.5, abs=0.005)
    kaldi = type(frontend)(dataclasses.replace(frontend.config, kaldi=True))
    assert Inputs(kaldi).first_frame_s == pytest.approx(frontend.config.window_samples / 32_000)


@pytest.mark.parametrize("tokens", [Characters(" abct"), Bytes()])
def test_pieces_of_a_recording_are_told_apart(transcriber, monkeypatch, tokens):
    assert_spaced(transcriber, monkeypatch, tokens)


def test_pieces_of_words_are_told_apart(transcriber, monkeypatch):
    """SentencePiece takes a space alone away, but has a piece for it."""
    assert_spaced(transcriber, monkeypatch, SentencePieces.fit(["a cat", "b cab", "a b"], size=9))


def assert_spaced(transcriber, monkeypatch, tokens):
    monkeypatch.setattr(transcriber.recogniser, "tokenizer", tokens)
    inner = [token for token in range(1, tokens.size) if tokens.pieces[token] in (b"a", b"b")]
    before = tokens.encode("cat")
    text = tokens.decode([*before, *transcriber._spaced(before, tuple(inner))])
    assert text.split()[0] == "cat"
    assert len(text.split()) > 1


def test_memory_that_runs_out_is_said_with_the_recording(transcriber, clip, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")

    cut, path, _ = clip
    for step in ("_encode", "_tokens", "_features"):
        monkeypatch.setattr(transcriber, step, fail)
        for recording, name in ((cut, cut.id), (path, path)):
            with pytest.raises(JobError, match=rf"{re.escape(name)}: memory ran out.*set chunk_s"):
                transcriber.transcribe(recording)


def test_a_beam_that_no_memory_holds_is_a_failure_of_the_job(trained, clip, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 74.5 GiB")

    monkeypatch.setattr("speechkit.asr.transcriber.ctc_beam.beam_search", fail)
    with pytest.raises(JobError, match="lower beam, which is 100000"):
        Transcriber.load(trained, DecodingConfig(beam=100_000, own_lm=False)).transcribe(clip[1])


def test_a_language_model_of_other_words_is_refused(trained, tmp_path):
    from speechkit.asr import kneser_ney

    kneser_ney.train(["HELLO WORLD"]).save(tmp_path / "lm.arpa")
    with pytest.raises(RequestError, match="mind the case"):
        Transcriber.load(trained, DecodingConfig(lm=tmp_path / "lm.arpa"))


@given(st.integers(1, 30), st.lists(st.booleans(), max_size=100))
@settings(max_examples=80, deadline=None)
def test_pieces_hold_everything(frames, blanks):
    log_probs = torch.tensor([[0.9, 0.1] if b else [0.1, 0.9] for b in blanks]).reshape(-1, 2).log()
    pieces = list(pieces_at_blanks(log_probs, frames))
    assert torch.equal(torch.cat(pieces), log_probs)
    assert all(len(piece) <= frames for piece in pieces)


def test_a_long_recording_is_searched_in_pieces(trained, corpus, monkeypatch):
    from speechkit.asr import transcriber as module

    cuts = list(corpus[0])[:4]
    joined = np.concatenate([load(cut.recording.sources[0].source) for cut in cuts])
    whole = Transcriber.load(trained, DecodingConfig(beam=4)).transcribe(joined)
    monkeypatch.setattr(module, "_PIECE_S", 2.0)
    pieces = Transcriber.load(trained, DecodingConfig(beam=4)).transcribe(joined)
    assert score([Transcript("x", whole.text, pieces.text)]).characters.rate < 0.2


def test_a_model_of_stored_features_takes_them(tmp_path):
    transcriber = Transcriber(recogniser(stored=True))
    transcriber.transcribe(np.random.default_rng(0).standard_normal((60, 5)))
    assert transcriber.transcribe(np.zeros((0, 5))).text == ""
    with pytest.raises(RequestError, match=r"give \(frames, 5\)"):
        transcriber.transcribe(np.zeros((10, 4)))
    with pytest.raises(RequestError, match="stored features"):
        transcriber.transcribe(tmp_path / "x.wav")


@pytest.mark.parametrize(
    "wrong",
    [
        {"beam": 0},
        {"chunk_s": -1.0},
        {"chunk_s": float("nan")},
        {"overlap_s": float("inf")},
        {"lm_weight": float("nan")},
        {"word_bonus": float("inf")},
        {"chunk_s": 2.0, "overlap_s": 2.0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        DecodingConfig(**wrong)


def test_an_overlap_as_long_as_the_chunks_that_are_taken_by_default_is_refused():
    dense = recogniser(dataclasses.replace(SMALL, patterns=("Dense()",)))
    Transcriber(dense, DecodingConfig(overlap_s=29.0))
    with pytest.raises(RequestError, match="chunks of 30 s must be longer"):
        Transcriber(dense, DecodingConfig(overlap_s=30.0))
    Transcriber(recogniser(), DecodingConfig(overlap_s=30.0))  # in one pass


def run_verb(function, *words, positional=()):
    return cli._call(function, [str(word) for word in words], prog="x", positional=positional)


def transcribe(*words):
    from speechkit.asr.transcribe import transcribe as verb

    return run_verb(verb, *words, positional=("files",))


def test_the_verb_names_broken_files_and_goes_on(trained, corpus, tmp_path, capsys, caplog):
    folder = tmp_path / "audio"
    (folder / "deep").mkdir(parents=True)
    for index, cut in enumerate(list(corpus[0])[:3]):
        write_audio(folder / "deep" / f"{index}.wav", load(cut.recording.sources[0].source))
    assert transcribe(folder, "--model", trained) == 0
    lines = capsys.readouterr().out.splitlines()
    texts = [cut.supervisions[0].text.lower() for cut in list(corpus[0])[:3]]
    assert lines == [f"deep/{i}.wav\t{text}" for i, text in enumerate(texts)]
    (folder / "broken.wav").write_text("no audio")
    out = tmp_path / "out"
    assert transcribe(folder, "--model", trained, "--out", out, "--format", "json") == 1
    assert "1 of 4 not transcribed: broken.wav" in caplog.text
    assert json.loads((out / "deep" / "1.wav.json").read_text())["text"] == texts[1]


def test_recordings_of_one_name_are_told_apart(trained, corpus, tmp_path, capsys, monkeypatch):
    texts = []
    for folder, cut in zip(("a", "b"), corpus[0], strict=False):
        write_audio(tmp_path / folder / "1.wav", load(cut.recording.sources[0].source))
        texts.append(cut.supervisions[0].text.lower())
    folders = [tmp_path / "a", tmp_path / "b"]
    assert transcribe(*folders, "--model", trained) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{name}/1.wav\t{text}" for name, text in zip("ab", texts, strict=True)]
    out = tmp_path / "out"
    assert transcribe(*folders, "--model", trained, "--out", out) == 0
    assert [(out / name / "1.wav.txt").read_text().strip() for name in "ab"] == texts
    with pytest.raises(RequestError, match="would both be written to"):
        transcribe(*(f / "1.wav" for f in folders), "--model", trained, "--out", tmp_path / "x")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert transcribe("../a/1.wav", "--model", trained, "--out", "o") == 0
    assert [p.as_posix() for p in Path().rglob("*.txt")] == ["o/1.wav.txt"]


def test_a_textgrid_ends_with_the_recording(trained, tmp_path, capsys):
    soundfile.write(tmp_path / "x.wav", np.zeros(2 * SAMPLE_RATE), SAMPLE_RATE)
    assert transcribe(tmp_path / "x.wav", "--model", trained, "--format", "textgrid") == 0
    assert "xmax = 2.000000" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["txt", "json", "srt", "ctm", "textgrid"])
def test_formats(trained, clip, capsys, form):
    _, path, text = clip
    assert transcribe(path, "--model", trained, "--format", form) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in text.split())


def test_an_empty_folder_is_a_wrong_request(trained, tmp_path):
    with pytest.raises(RequestError, match="holds no file"):
        transcribe(tmp_path, "--model", trained)


def test_standard_input(trained, clip, capsys, monkeypatch, caplog):
    _, path, text = clip
    pcm = (load(path) * 32768).astype("<i2").tobytes()
    for fed in (pcm, pcm + b"x"):
        monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(fed)))
        assert transcribe("-", "--model", trained) == 0
        assert capsys.readouterr().out == text + "\n"
    assert "half a sample" in caplog.text


def test_a_file_with_a_header_is_no_raw_pcm(trained, clip, monkeypatch, caplog):
    file = io.BytesIO(Path(clip[1]).read_bytes())
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=file))
    assert transcribe("-", "--model", trained) == 1
    assert "a file with a header" in caplog.text


def test_a_folder_is_loaded_ready(trained):
    assert not Recogniser.load(trained).training


def test_the_weights_of_the_fewest_errors_are_chosen_and_of_equals_the_first(
    corpus, trained, tmp_path, monkeypatch
):
    lm = tmp_path / "lm.arpa"
    kneser_ney.train(["a b", "b a"], order=2).save(lm)
    right = {(0.4, 1.0), (0.7, 0.0)}

    def decode(self, log_probs):
        weights = self.config.lm_weight, self.config.word_bonus
        return types.SimpleNamespace(text="wrong words" if weights not in right else "a")

    monkeypatch.setattr(Transcriber, "decode", decode)
    monkeypatch.setattr(Recogniser, "reference", lambda self, cut: "a")
    chosen = tune_lm.choose_weights(Recogniser.load(trained), list(corpus[0])[:2], lm)
    assert (chosen.lm, chosen.lm_weight, chosen.word_bonus) == (lm, 0.4, 1.0)
