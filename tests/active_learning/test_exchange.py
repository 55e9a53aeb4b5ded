import gzip
import json

import numpy as np
import pytest
from lhotse import CutSet, SupervisionSegment

from speechkit import cli, manifests
from speechkit.active_learning import label_studio
from speechkit.active_learning.annotations import Annotation, TextRules, read_labels, resolve, save
from speechkit.active_learning.blocks import commit, cut_blocks, finish
from speechkit.active_learning.exchange import export, import_labels
from speechkit.active_learning.jsonl import read_rows, write_rows
from speechkit.active_learning.select import read_selection, select
from speechkit.audio import load, write_audio
from speechkit.errors import JobError, RequestError

COUNT = 6


@pytest.fixture
def pool(tmp_path):
    """Six clips that are parts of one file, one broken, with scores."""
    rng = np.random.default_rng(0)
    write_audio(tmp_path / "pool/long.wav", rng.normal(0, 0.1, 16000 * COUNT).astype(np.float32))
    rows = [
        {"audio_filepath": "long.wav", "duration": 1.0, "offset": float(i), "sample_rate": 16000}
        | {"text": f"the truth {i}", "speaker": f"s{i % 2}", "label": "x", "text_norm": "truth"}
        for i in range(COUNT)
    ]
    write_rows(tmp_path / "pool/manifest.jsonl", rows)
    cuts = list(manifests.read(tmp_path / "pool"))
    scored = {
        cut.id: {
            "id": cut.id,
            "duration_s": cut.duration,
            "status": "failed" if i == 0 else "ok",
            "error": "broken" if i == 0 else None,
            "egl": float(i) if i else None,
            "hypothesis": f"guess {i}" if i else None,
            "embedding": [float(i), 0.0] if i else None,
            "level_dbfs": -90.0 if i == 1 else -20.0,
        }
        for i, cut in enumerate(cuts)
    }
    blocks = cut_blocks(scored, size=4)
    for block in blocks:
        commit(block, [scored[id_] for id_ in block.ids], tmp_path / "scores")
    finish(blocks, tmp_path / "scores")
    return tmp_path


@pytest.fixture
def selection(pool):
    select(pool / "scores", cuts=pool / "pool", budget="3s", out=pool / "selection")
    return pool / "selection"


def ids_of(selection):
    return [row["id"] for row in read_rows(selection / "selection.jsonl")]


def annotation(text, *, at="2026-01-01T00:00:00Z", cancelled=False, number=1):
    region = {"type": "textarea", "from_name": "transcription", "value": {"text": [text]}}
    return {
        "id": number,
        "was_cancelled": cancelled,
        "created_at": at,
        "updated_at": at,
        "completed_by": 7,
        "lead_time": 4.5,
        "result": [] if cancelled else [region],
    }


def region_of(text):
    return [{"type": "textarea", "from_name": "transcription", "value": {"text": text}}]


def returned(path, given):
    """Write a raw export: id -> annotations."""
    tasks = [{"id": i, "data": {"id": id_}, "annotations": a} for i, (id_, a) in enumerate(given)]
    path.write_text(json.dumps(tasks))
    return path


def texts_in(folder):
    cuts = manifests.read(folder / "cuts.jsonl.gz", allow_empty=True)
    return {cut.id: manifests.text_of(cut) for cut in cuts}


def test_selecting(pool, selection):
    rows, cuts = read_selection(selection)
    assert [row["egl"] for row in rows] == [5.0, 4.0, 3.0]
    assert rows[0]["hypothesis"] == "guess 5"
    assert rows[0]["cumulative_cost"] == 1.0
    assert "embedding" not in rows[0]
    assert {row["cluster"] for row in rows} == {0, 1}
    assert [cut.id for cut in cuts] == [row["id"] for row in rows]
    skipped = [row["reason"] for row in read_rows(selection / "skipped.jsonl")]
    assert skipped == ["failed: broken", "silent: -90.0 dBFS"]
    report = json.loads((selection / "report.json").read_text())
    assert (report["clips"], report["unused"]) == (3, 0)
    assert report["composition"]["clips"] == {"selected": 3, "pool": 6}


def test_selecting_twice_takes_others_and_then_nothing(pool, selection):
    first = {"scores": pool / "scores", "cuts": pool / "pool", "labelled": [selection]}
    select(**first, budget="9", out=pool / "second")
    assert len(ids_of(pool / "second")) == 1
    first["labelled"].append(pool / "second")
    with pytest.raises(JobError, match=r"nothing can be selected.*4 labelled"):
        select(**first, budget="9", out=pool / "third")


def test_the_pool_must_hold_what_was_scored(pool):
    cuts = list(manifests.read(pool / "pool"))[:2]
    manifests.write(cuts, pool / "few.jsonl")
    with pytest.raises(RequestError, match="not in the pool"):
        select(pool / "scores", cuts=pool / "few.jsonl", budget="3", out=pool / "out")


def test_tasks_for_label_studio(pool, selection):
    assert export(selection, to="label-studio", out=pool / "ls", model_version="m1") == 0
    tasks = json.loads((pool / "ls/tasks.json").read_text())
    assert [task["data"]["id"] for task in tasks] == ids_of(selection)
    predictions = [task["predictions"][0] for task in tasks]
    assert predictions[0]["score"] < predictions[1]["score"] < predictions[2]["score"] <= 1
    assert predictions[0]["result"][0]["value"] == {"text": ["guess 5"]}
    assert predictions[0]["model_version"] == "m1"
    assert "cluster" in predictions[0]
    assert tasks[0]["data"]["audio"] == "/data/local-files/?d=audio/00001.wav"
    assert len(load(pool / "ls/audio/00001.wav")) == 16000
    assert 'toName="audio"' in (pool / "ls/labelling_config.xml").read_text()
    assert "truth" not in (pool / "ls/tasks.json").read_text()


def test_broken_audio_is_left_out(pool, selection):
    (pool / "pool/long.wav").write_bytes(b"nothing")
    assert export(selection, to="label-studio", out=pool / "ls") == 1
    assert json.loads((pool / "ls/tasks.json").read_text()) == []


def test_a_text_that_is_rejected_is_asked_for_again_whoever_skips_it_later():
    rejected = Annotation(id="a", status="rejected", updated="2026-01-01")
    skipped = Annotation(id="a", status="ignored", updated="2026-02-01")
    assert resolve("a", [rejected, skipped]) == rejected
    assert resolve("a", [skipped, skipped]) == skipped
    assert resolve("a", []).status == "unlabelled"


def test_labels_come_back_from_label_studio(pool, selection):
    a, b, c = ids_of(selection)
    file = returned(
        pool / "back.json",
        [
            (a, [annotation("old one", at="2026-01-01"), annotation("new  one ", at="2026-02-01")]),
            (b, [annotation("", cancelled=True)]),
            (c, []),
        ],
    )
    assert import_labels(file, selection=selection, out=pool / "labels") == 0
    labels = read_labels(pool / "labels")
    assert {id_: label.status for id_, label in labels.items()} == {
        a: "labelled",
        b: "ignored",
        c: "unlabelled",
    }
    assert labels[a].text == "new one"
    assert labels[a].texts == ("new one", "old one")
    assert labels[a].disagreement == 0.5
    assert (labels[a].seconds, labels[a].annotator) == (4.5, "7")
    assert texts_in(pool / "labels") == {a: "new one"}
    (cut,) = manifests.read(pool / "labels")
    assert cut.supervisions[0].custom is None
    assert cut.supervisions[0].speaker == "s1"
    assert len(cut.load_audio()[0]) == 16000


def test_regions_are_joined_by_their_starts():
    regions = [
        {"type": "textarea", "value": {"start": 2.0, "text": ["c"]}},
        {"type": "labels", "value": {"start": 0.0, "labels": ["speech"]}},
        {"type": "textarea", "value": {"start": 0.5, "text": ["a", " b "]}},
        {"type": "textarea", "value": {"start": 1.0, "text": "bb"}},
    ]
    assert label_studio._transcript(regions) == ("a b bb c", None)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"lead_time": float("nan")}, "labelled"),
        ({"lead_time": 10**400}, "labelled"),
        ({"result": 5}, "rejected"),
        ({"result": region_of(5)}, "rejected"),
        ({"result": region_of([None])}, "rejected"),
        ({"result": region_of([{"x": 1}])}, "rejected"),
        ({"result": region_of("a b")}, "labelled"),
    ],
)
def test_odd_values_of_a_tool_are_no_labels(pool, selection, change, status):
    first = ids_of(selection)[0]
    path = returned(pool / "odd.json", [(first, [annotation("a b") | change])])
    import_labels(path, selection=selection, out=pool / "labels")
    kept = read_labels(pool / "labels")[first]
    assert kept.status == status
    assert kept.text == ("a b" if status == "labelled" else "")
    assert kept.seconds == (None if "lead_time" in change else 4.5)


def test_comments_are_no_part_of_a_transcript(pool, selection):
    a, b, c = ids_of(selection)
    commented, other, unclear = annotation("the words"), annotation("words"), annotation("words")
    note = {"type": "textarea", "from_name": "notes", "value": {"text": ["noisy, child"]}}
    commented["result"].append(note)
    other["result"][0]["from_name"] = "asr"  # a project of theirs, with a single field
    unclear["result"] = [*other["result"], note]
    given = [(a, [commented]), (b, [other]), (c, [unclear])]
    file = returned(pool / "back.json", given)
    assert import_labels(file, selection=selection, out=pool / "labels") == 1
    labels = read_labels(pool / "labels")
    assert (labels[a].text, labels[b].text) == ("the words", "words")
    assert labels[c].status == "rejected"
    assert labels[c].detail == "texts in the fields asr, notes; name one transcription"


def test_the_work_of_all_annotators_counts(pool, selection):
    a, b, _ = ids_of(selection)
    twice = [annotation("one", at="2026-01-01"), annotation("two", at="2026-02-01")]
    file = returned(pool / "back.json", [(a, twice), (b, [annotation("", cancelled=True)])])
    import_labels(file, selection=selection, out=pool / "labels")
    report = json.loads((pool / "labels/report.json").read_text())
    assert report["seconds_of_work"] == 13.5


def test_unusable_labels_are_states(pool, selection, caplog):
    a, b, c = ids_of(selection)
    file = returned(
        pool / "back.json",
        [
            (a, [annotation("ça va")]),
            (b, [annotation("")]),
            (c, [annotation("x" * 200)]),
            ("stranger", [annotation("fine")]),
            (None, [annotation("fine")]),
        ],
    )
    rules = TextRules(characters="abcdefghijklmnopqrstuvwxyz'")
    assert import_labels(file, selection=selection, out=pool / "labels", config=rules) == 1
    labels = read_labels(pool / "labels")
    assert {label.status for label in labels.values()} == {"rejected"}
    assert labels[a].detail == "unknown characters 'ç'"
    assert labels[a].text == "ça va"
    assert "empty" in labels[b].detail
    assert "cannot have been said" in labels[c].detail
    report = json.loads((pool / "labels/report.json").read_text())
    assert report["unknown_ids"] == ["stranger", "(none)"]
    assert texts_in(pool / "labels") == {}


def test_labels_once_saved_are_never_lost(pool, selection):
    a, b, c = ids_of(selection)
    out = pool / "labels"
    good = returned(pool / "1.json", [(a, [annotation("one")]), (b, [annotation("two")])])
    import_labels(good, selection=selection, out=out)
    whole = good.read_text()
    cut = pool / "cut.json"
    cut.write_text(whole[: len(whole) // 2])
    with pytest.raises(RequestError, match="cannot be read as JSON"):
        import_labels(cut, selection=selection, out=out)
    skipped = [(id_, [annotation("", cancelled=True)]) for id_ in (a, b, c)]
    import_labels(returned(pool / "2.json", skipped), selection=selection, out=out)
    assert texts_in(out) == {a: "one", b: "two"}
    assert read_labels(out)[c].status == "ignored"
    later = [(a, [annotation("uno", at="2027")]), (b, [annotation("zwei", at="2020")])]
    import_labels(returned(pool / "3.json", later), selection=selection, out=out)
    assert texts_in(out) == {a: "uno", b: "two"}
    assert read_labels(out)[a].previous == ("one",)
    assert read_labels(out)[b].previous == ("zwei",)
    # a selection of other clips joins them
    select(pool / "scores", cuts=pool / "pool", budget="1", labelled=[selection], out=pool / "s2")
    (d,) = ids_of(pool / "s2")
    import_labels(
        returned(pool / "4.json", [(d, [annotation("d")])]), selection=pool / "s2", out=out
    )
    assert texts_in(out) == {a: "uno", b: "two", d: "d"}
    (out / "labels.jsonl").write_text((out / "labels.jsonl").read_text()[:-20])
    damaged = (out / "labels.jsonl").read_text()
    with pytest.raises(RequestError, match="is no JSON"):
        import_labels(good, selection=selection, out=out)
    assert (out / "labels.jsonl").read_text() == damaged


def test_an_older_text_counts_but_a_newer_unusable_one_is_named(pool, selection):
    a, *_ = ids_of(selection)
    given = [annotation("old", at="2026"), annotation("new\u0007", at="2027")]
    file = returned(pool / "back.json", [(a, given)])
    assert import_labels(file, selection=selection, out=pool / "labels") == 1
    assert texts_in(pool / "labels") == {a: "old"}
    report = json.loads((pool / "labels/report.json").read_text())
    assert [row["id"] for row in report["rejected"]] == [a]


def test_half_a_character_harms_its_own_clip_alone(pool, selection):
    a, b, _ = ids_of(selection)
    given = [(a, [annotation("ok \ud83d")]), (b, [annotation("fine")]), ("\ud83d", [])]
    file = returned(pool / "back.json", given)
    assert import_labels(file, selection=selection, out=pool / "labels") == 1
    assert texts_in(pool / "labels") == {b: "fine"}
    assert read_labels(pool / "labels")[a].text == "ok \ud83d"


def test_no_annotators_text_is_forgotten(pool, selection):
    a, b, _ = ids_of(selection)
    out = pool / "labels"
    both = [annotation("two", at="2026-02"), annotation("one", at="2026-01")]
    skipped = [annotation("", cancelled=True, at="2026-01")]
    import_labels(
        returned(pool / "1.json", [(a, both), (b, skipped)]), selection=selection, out=out
    )
    later = [(a, [annotation("three", at="2027")]), (b, [annotation("?\u0007", at="2027")])]
    import_labels(returned(pool / "2.json", later), selection=selection, out=out)
    labels = read_labels(out)
    assert (labels[a].text, labels[a].previous) == ("three", ("one", "two"))
    # what was skipped and then tried is asked for again, until it is skipped again
    assert labels[b].status == "rejected"
    given_up = [(b, [annotation("", cancelled=True, at="2028")])]
    import_labels(returned(pool / "3.json", given_up), selection=selection, out=out)
    assert read_labels(out)[b].status == "ignored"


@pytest.mark.parametrize(("to", "name"), [("nemo", "manifest.jsonl"), ("lhotse", "cuts.jsonl.gz")])
def test_an_export_with_labels_is_not_written_over(pool, selection, to, name):
    out = pool / "out"
    export(selection, to=to, out=out)
    export(selection, to=to, out=out)
    if to == "nemo":
        rows = read_rows(out / name)
        write_rows(out / name, [{**rows[0], "text": "typed"}, *rows[1:]])
    else:
        cuts = list(manifests.read(out))
        cuts[0].supervisions[0].text = "typed"
        manifests.write(cuts, out / name)
    with pytest.raises(RequestError, match="holds labels; import them"):
        export(selection, to=to, out=out)
    import_labels(out / name, selection=selection, out=pool / "labels")
    assert list(texts_in(pool / "labels").values()) == ["typed"]


def test_a_folder_of_one_selection_takes_no_other(pool, selection):
    export(selection, to="label-studio", out=pool / "ls")
    select(pool / "scores", cuts=pool / "pool", budget="1", labelled=[selection], out=pool / "s2")
    with pytest.raises(RequestError, match="give another folder"):
        export(pool / "s2", to="label-studio", out=pool / "ls")


def test_all_skipped(pool, selection):
    given = [(id_, [annotation("", cancelled=True)]) for id_ in ids_of(selection)]
    file = returned(pool / "back.json", given)
    assert import_labels(file, selection=selection, out=pool / "labels") == 0
    assert texts_in(pool / "labels") == {}
    # and they are not asked for again
    given = {"scores": pool / "scores", "cuts": pool / "pool", "labelled": [pool / "labels"]}
    select(**given, budget="9", out=pool / "next")
    assert not set(ids_of(pool / "next")) & set(ids_of(selection))


def test_nemo_there_and_back(pool, selection):
    assert export(selection, to="nemo", out=pool / "nemo") == 0
    rows = read_rows(pool / "nemo/manifest.jsonl")
    assert [row["id"] for row in rows] == ids_of(selection)
    assert {row["text"] for row in rows} == {None}
    assert rows[0]["pred_text"] == "guess 5"
    assert len(manifests.read(pool / "nemo")) == 3
    rows[0]["text"] = "typed"
    rows[1]["skip"] = True
    write_rows(pool / "done.jsonl", [*rows, {**rows[0], "text": "typed again"}])
    assert import_labels(pool / "done.jsonl", selection=selection, out=pool / "labels") == 0
    labels = read_labels(pool / "labels")
    assert [labels[row["id"]].status for row in rows] == ["labelled", "ignored", "unlabelled"]
    assert labels[rows[0]["id"]].texts == ("typed again", "typed")
    with gzip.open(pool / "done.jsonl.gz", "wb") as packed:
        packed.write((pool / "done.jsonl").read_bytes())
    import_labels(pool / "done.jsonl.gz", selection=selection, out=pool / "again")
    assert texts_in(pool / "again") == texts_in(pool / "labels")


def test_lhotse_there_and_back(pool, selection):
    assert export(selection, to="lhotse", out=pool / "cuts") == 0
    cuts = list(manifests.read(pool / "cuts"))
    assert [manifests.text_of(cut) for cut in cuts] == [None] * 3
    assert cuts[0].supervisions[0].custom["hypothesis"] == "guess 5"
    cuts[0].supervisions[0].text = "typed"
    manifests.write(cuts, pool / "done.jsonl.gz")
    import_labels(pool / "done.jsonl.gz", selection=selection, out=pool / "labels")
    assert texts_in(pool / "labels") == {cuts[0].id: "typed"}


def test_texts_stay_behind_whatever_a_corpus_calls_them(pool, selection):
    cuts = list(manifests.read(selection))
    for cut in cuts:
        told = {"orig_text": "the truth", "transcript": "the truth", "words": ["the", "truth"]}
        cut.supervisions[0].custom = {**told, "room": 3}
        cut.custom = told
    manifests.write(cuts, selection / manifests.CUTS_NAME)
    export(selection, to="lhotse", out=pool / "cuts")
    for cut in manifests.read(pool / "cuts"):
        custom = cut.supervisions[0].custom
        assert custom["room"] == 3
        assert not told.keys() & custom.keys()
        assert not cut.custom


def test_a_segment_without_its_text_is_named(pool, selection, caplog):
    export(selection, to="lhotse", out=pool / "cuts")
    cuts = list(manifests.read(pool / "cuts"))
    (whole,) = cuts[0].supervisions
    halves = [
        SupervisionSegment(f"{n}", whole.recording_id, n / 2, 0.5, text=text)
        for n, text in enumerate(("hello there", None))
    ]
    cuts[0].supervisions = halves
    manifests.write(cuts, pool / "done.jsonl.gz")
    assert import_labels(pool / "done.jsonl.gz", selection=selection, out=pool / "labels") == 1
    label = read_labels(pool / "labels")[cuts[0].id]
    assert (label.status, label.text) == ("rejected", "hello there")
    assert "1 of 2 segments have no text" in caplog.text


def test_mixed_and_bare_cuts_take_labels(tmp_path):
    write_audio(tmp_path / "a.wav", np.zeros(16000, dtype=np.float32))
    write_rows(tmp_path / "m.jsonl", [{"audio_filepath": "a.wav"}])
    (cut,) = manifests.read(tmp_path / "m.jsonl")
    bare = cut.drop_supervisions().with_id("bare")
    mixed = cut.pad(duration=2.0).with_id("mixed")
    given = [Annotation(id=id_, status="labelled", text=id_) for id_ in ("bare", "mixed")]
    save(tmp_path / "labels", given, CutSet.from_cuts([bare, mixed]))
    assert texts_in(tmp_path / "labels") == {"bare": "bare", "mixed": "mixed"}
    assert cut.supervisions[0].text is None
    assert isinstance(cut.supervisions[0], SupervisionSegment)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]x", "cannot be read as JSON"),
        ("{}", "no raw export"),
        ('[{"id": 1, "transcription": "min"}]', "not JSON-MIN"),
        ('[{"data": {}, "annotations": [3]}]', "no raw export"),
    ],
)
def test_files_of_another_format(pool, selection, content, message):
    (pool / "x.json").write_text(content)
    with pytest.raises(RequestError, match=message):
        import_labels(pool / "x.json", selection=selection, out=pool / "labels")
    assert not (pool / "labels").exists()


@pytest.mark.parametrize(("to", "name"), [("nemo", "manifest.jsonl"), ("lhotse", "cuts.jsonl.gz")])
def test_a_manifest_cut_in_the_middle_changes_nothing(pool, selection, to, name):
    export(selection, to=to, out=pool / "out")
    whole = (pool / "out" / name).read_bytes()
    (pool / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RequestError, match=r"is no JSON|cannot be read"):
        import_labels(pool / name, selection=selection, out=pool / "labels")
    assert not (pool / "labels").exists()


def test_the_selection_is_not_overwritten(pool, selection):
    with pytest.raises(RequestError, match="is the selection itself"):
        export(selection, to="lhotse", out=selection)
    with pytest.raises(RequestError, match="no such file"):
        import_labels(pool / "absent.json", selection=selection, out=pool / "labels")
    with pytest.raises(RequestError, match=r"holds no selection\.jsonl"):
        export(pool / "pool", to="nemo", out=pool / "out")


def test_as_verbs(pool):
    home = "speechkit.active_learning"
    verbs = {
        "select": cli.Verb(f"{home}.select:select", "", ("scores",)),
        "export": cli.Verb(f"{home}.exchange:export", "", ("selection",)),
        "import": cli.Verb(f"{home}.exchange:import_labels", "", ("file",)),
    }

    def run(verb, *words):
        return cli._run(verbs[verb], [str(word) for word in words], prog=f"speechkit al {verb}")

    chosen = pool / "chosen"
    options = ["--cuts", pool / "pool", "--budget", "cost:20", "--out", chosen]
    options += ["--method", "kmeans++", "--cost.fixed", 2, "--quality.silence-dbfs", -100]
    assert run("select", pool / "scores", *options) == 0
    assert len(ids_of(chosen)) == 2
    assert run("export", chosen, "--to", "nemo", "--out", pool / "nemo") == 0
    back = ["--selection", chosen, "--out", pool / "labels", "--allow-empty"]
    assert run("import", pool / "nemo/manifest.jsonl", *back) == 0
