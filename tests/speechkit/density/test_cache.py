import errno

import numpy as np
import pytest

from speechkit.density import cache
from speechkit.density.cache import cached
from speechkit.errors import JobError, RequestError

SOURCES = {"a": [1, 2, 3], "b": [4], "c": [], "d": [5, 6, 7, 8]}


class Sources:
    """Sources that note what was read of them, and fail where they are told."""

    def __init__(self, failures=()):
        self.failures = dict(failures)
        self.asked = []

    def __call__(self, name):
        self.asked.append(name)
        for value in SOURCES[name]:
            if self.failures.get(name) is not None:
                yield np.full(3, 99, dtype=np.uint8)
                raise self.failures[name]
            yield np.array([value], dtype=np.uint8)


def get(folder, read, **key):
    return cached(folder, {"reader": "test", **key}, names=list(SOURCES), read=read)


def test_bytes_are_those_of_the_sources_and_are_read_once(tmp_path):
    whole = get(tmp_path, Sources())
    again = get(tmp_path, None)
    for one in (whole, again):
        assert isinstance(one.data, np.memmap)
        assert one.data.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
        spans = {entry.name: (entry.start, entry.stop) for entry in one.entries}
        assert spans == {"a": (0, 3), "b": (3, 4), "c": (4, 4), "d": (4, 8)}


def test_another_key_is_another_cache(tmp_path):
    get(tmp_path, Sources(), rate=1)
    other = Sources()
    get(tmp_path, other, rate=2)
    assert other.asked == list(SOURCES)


def test_a_job_that_was_stopped_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        get(tmp_path, Sources({"d": KeyboardInterrupt()}))
    rest = Sources()
    whole = get(tmp_path, rest)
    assert rest.asked == ["d"]
    assert whole.data.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("index_bytes", "data_bytes"), [(20, None), (None, 2), (0, 0)])
def test_after_a_crash_only_what_is_whole_counts(tmp_path, index_bytes, data_bytes):
    with pytest.raises(KeyboardInterrupt):
        get(tmp_path, Sources({"d": KeyboardInterrupt()}))
    (home,) = tmp_path.iterdir()
    for name, size in (("index.jsonl.part", index_bytes), ("data.u8.part", data_bytes)):
        if size is not None:
            with (home / name).open("r+b") as file:
                file.truncate(size)
    rest = Sources()
    assert get(tmp_path, rest).data.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert rest.asked == list(SOURCES)


def test_a_cache_that_lost_bytes_is_made_again(tmp_path):
    get(tmp_path, Sources())
    (home,) = tmp_path.iterdir()
    with (home / "data.u8").open("r+b") as file:
        file.truncate(5)
    assert get(tmp_path, Sources()).data.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_broken_source_is_left_out_whole(tmp_path, caplog):
    whole = get(tmp_path, Sources({"b": JobError("b: broken")}))
    assert whole.data.tolist() == [1, 2, 3, 5, 6, 7, 8]
    assert [entry.name for entry in whole.entries] == ["a", "c", "d"]
    assert "left out: b: broken" in caplog.text


def test_nothing_but_broken_sources(tmp_path):
    broken = {name: JobError(f"{name}: broken") for name in "abd"}
    with pytest.raises(RequestError, match=r"none of 4 sources can be used, as a: broken"):
        get(tmp_path, Sources(broken))


def test_what_fails_of_a_source_is_no_fault_of_the_cache(tmp_path, caplog):
    gone = OSError(errno.ENOENT, "No such file or directory")
    assert [e.name for e in get(tmp_path, Sources({"b": gone})).entries] == ["a", "c", "d"]
    assert "left out: b: cannot be read (No such file or directory)" in caplog.text


def test_no_sources(tmp_path):
    with pytest.raises(RequestError, match="none of 0 sources"):
        cached(tmp_path, {}, names=[], read=Sources())


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    append = cache._append

    def filled(file, name, start, read):
        if name == "d":
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(file, name, start, read)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_append", filled)
        with pytest.raises(JobError, match=r"cannot be written .No space left on device"):
            get(tmp_path, Sources())
    rest = Sources()
    get(tmp_path, rest)
    assert rest.asked == ["d"]
