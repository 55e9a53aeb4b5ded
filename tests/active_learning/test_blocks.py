import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.active_learning.blocks import (
    commit,
    cut_blocks,
    digest,
    find_scores,
    finish,
    pending,
    read_scores,
    reopen,
    scores_folder,
    verify,
)
from speechkit.errors import JobError, RequestError

IDS = [f"clip-{i:03d}" for i in range(23)]


def row(id_):
    number = int(id_[-3:])
    if number % 7 == 3:
        return {"id": id_, "duration_s": 1.0, "status": "failed", "error": "broken"}
    return {
        "id": id_,
        "duration_s": 1.0 + number,
        "status": "ok",
        "error": None,
        "egl": number / 3,
        "n_hypotheses": number,
        "hypothesis": f"text {number}",
        "embedding": np.arange(4, dtype=np.float32) * number,
    }


def score(blocks, folder):
    for block in blocks:
        commit(block, [row(id_) for id_ in block.ids], folder)


@given(st.sets(st.text(max_size=5), max_size=40), st.integers(1, 9), st.randoms())
def test_blocks_cover_the_pool_once_whatever_its_order(ids, size, random):
    shuffled = sorted(ids)
    random.shuffle(shuffled)
    blocks = cut_blocks(shuffled, size=size)
    assert blocks == cut_blocks(sorted(ids), size=size)
    assert sorted(id_ for block in blocks for id_ in block.ids) == sorted(ids)
    assert all(len(block.ids) == size for block in blocks[:-1])


def test_any_order_of_work_gives_the_same_bytes(tmp_path):
    blocks = cut_blocks(IDS, size=5)
    score(blocks, tmp_path / "a")
    score([*blocks[1::2], *blocks[::2]], tmp_path / "b")
    for block in blocks:
        parts = [(tmp_path / name / block.part).read_bytes() for name in "ab"]
        assert parts[0] == parts[1]
    counts = finish(blocks, tmp_path / "a")
    assert counts == {"clips": 23, "ok": 20, "failed": 3, "blocks": 5}
    assert json.loads((tmp_path / "a/_SUCCESS").read_text()) == counts
    finish(blocks, tmp_path / "b")
    table = read_scores(tmp_path / "a")
    assert table.equals(read_scores(tmp_path / "b"))
    assert table["id"].to_pylist() == IDS
    assert table.column_names[:4] == ["id", "duration_s", "status", "error"]
    assert table["egl"][3].as_py() is None
    assert table["embedding"][2].as_py() == [0.0, 2.0, 4.0, 6.0]


def test_resume_does_what_is_missing_or_damaged(tmp_path):
    blocks = cut_blocks(IDS, size=5)
    score(blocks[:3], tmp_path)
    assert pending(blocks, tmp_path) == blocks[3:]
    with pytest.raises(JobError, match="2 of 5 blocks"):
        finish(blocks, tmp_path)
    with pytest.raises(RequestError, match="not ended"):
        read_scores(tmp_path)
    whole = (tmp_path / blocks[0].part).read_bytes()
    (tmp_path / blocks[0].part).write_bytes(whole[: len(whole) // 2])
    (tmp_path / blocks[1].part).write_bytes(b"")
    (tmp_path / ".tmp-1-part-000003.parquet").write_bytes(b"half")
    assert verify(tmp_path, IDS).corrupt == (blocks[0].part, blocks[1].part)
    shutil.copytree(tmp_path, tmp_path / "copy")
    reopen(tmp_path / "copy", failed=True)
    assert not [b for b in blocks[:2] if (tmp_path / "copy" / b.part).exists()]
    assert pending(blocks, tmp_path) == [*blocks[:2], *blocks[3:]]
    score(pending(blocks, tmp_path), tmp_path)
    finish(blocks, tmp_path)
    assert (tmp_path / blocks[0].part).read_bytes() == whole
    assert not list(tmp_path.glob(".tmp-*"))
    assert verify(tmp_path, IDS).whole


def test_scores_of_another_pool_are_not_touched(tmp_path):
    blocks = cut_blocks(IDS, size=5)
    score(blocks, tmp_path)
    for other in (cut_blocks(IDS, size=6), cut_blocks([*IDS[1:], "new-099"], size=5)):
        with pytest.raises(RequestError, match="another pool or block size"):
            pending(other, tmp_path)
    score([cut_blocks([f"more-{i:03d}" for i in range(30)], size=5)[5]], tmp_path)
    with pytest.raises(JobError, match="part-000005"):
        finish(blocks, tmp_path)


def test_verify_names_what_is_wrong(tmp_path):
    blocks = cut_blocks(IDS, size=5)
    score(blocks[1:], tmp_path)
    twice = pq.read_table(tmp_path / blocks[1].part)
    pq.write_table(twice, tmp_path / "part-000099.parquet")
    found = verify(tmp_path, [*IDS[:-1], "absent"])
    assert set(found.missing) == ({*blocks[0].ids} | {"absent"}) - {IDS[-1]}
    assert found.duplicated == tuple(sorted(blocks[1].ids))
    assert set(found.unknown) == {IDS[-1]} - set(blocks[0].ids)
    assert not found.whole
    assert "duplicated" in str(found)
    assert "not finished" in str(found)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("clip-000")],
        [row("clip-000"), row("clip-000")],
        [row("clip-000"), row("clip-002")],
        [row("clip-000"), {**row("clip-001"), "status": "fine"}],
    ],
)
def test_a_block_is_committed_whole_or_not_at_all(tmp_path, rows):
    (block,) = cut_blocks(["clip-000", "clip-001"], size=2)
    with pytest.raises(JobError):
        commit(block, rows, tmp_path)
    assert not list(tmp_path.iterdir())


def test_repeated_ids_are_named():
    with pytest.raises(RequestError, match=r"1 ids occur more than once \(a\)"):
        cut_blocks(["a", "b", "a"], size=2)
    with pytest.raises(RequestError, match="block size 0"):
        cut_blocks(["a"], size=0)


def test_folders_keep_models_and_settings_apart(tmp_path):
    shas = [digest({"beam": beam, "a": 1}) for beam in (8, 16)]
    assert shas[0] == digest({"a": 1, "beam": 8}) != shas[1]
    with pytest.raises(RequestError, match="holds no scores"):
        find_scores(tmp_path)
    blocks = cut_blocks(IDS, size=10)
    folders = [scores_folder(tmp_path, model_sha="m", config_sha=sha) for sha in shas]
    score(blocks, folders[0])
    assert find_scores(tmp_path) == find_scores(folders[0]) == folders[0]
    score(blocks, folders[1])
    with pytest.raises(RequestError, match="several"):
        find_scores(tmp_path)
