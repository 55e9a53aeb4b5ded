import numpy as np
import pytest

from speechkit.density.corpus import Corpus, ImageShape, Items, Stream
from speechkit.errors import RequestError


@pytest.fixture
def text(rng):
    data = rng.integers(0, 256, 5003, dtype=np.uint8)
    return Corpus(
        name="noise",
        kind="text",
        splits={"train": Stream(data[:4501]), "valid": Stream(data[4501:])},
    )


@pytest.fixture
def pictures(rng):
    shape = ImageShape(3, 2, 3)
    data = rng.integers(0, 256, (11, shape.size), dtype=np.uint8)
    rows = np.array([0, 2, 3, 5, 7, 8, 10])
    valid = Items(data, np.array([1, 4, 6, 9]))
    return Corpus(
        name="dots", kind="image", shape=shape, splits={"train": Items(data, rows), "valid": valid}
    )


def test_a_training_window_depends_on_seed_and_number_alone(text):
    windows, again = (text.training(length=37, seed=5) for _ in range(2))
    ahead = [again[number].tobytes() for number in (9, 3, 100)]
    assert [windows[number].tobytes() for number in (9, 3, 100)] == ahead
    assert len({windows[number].tobytes() for number in range(40)}) == 40
    assert windows[3].tobytes() != text.training(length=37, seed=6)[3].tobytes()


def test_training_windows_are_stretches_of_the_stream_and_reach_both_ends(text):
    stream = text.split("train").data
    windows = text.training(length=4490, seed=1)
    whole = stream.tobytes()
    starts = {whole.index(windows[number].tobytes()) for number in range(150)}
    assert starts == set(range(12))


@pytest.mark.parametrize("corpus", ["text", "pictures"])
def test_ranks_share_the_batch_that_one_process_would_take(corpus, request):
    windows = request.getfixturevalue(corpus).training(length=18, seed=2)
    for step in (0, 7):
        ranks = [windows.batch(step, 3, rank=rank, world=2) for rank in range(2)]
        np.testing.assert_array_equal(np.concatenate(ranks), windows.batch(step, 6))


def test_each_epoch_takes_every_image_once_in_another_order(pictures):
    windows = pictures.training(length=18, seed=3)
    rows = pictures.split("train").data[pictures.split("train").rows]
    epochs = [[windows[7 * epoch + k].tobytes() for k in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(row.tobytes() for row in rows) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_images_are_evaluated_whole(pictures):
    windows = list(pictures.evaluation("valid", length=18))
    assert [window.scored_from for window in windows] == [0] * 4
    split = pictures.split("valid")
    np.testing.assert_array_equal(np.stack([w.data for w in windows]), split.data[split.rows])


def test_windows_are_copies(text, pictures):
    for corpus in (text, pictures):
        before = corpus.fingerprint()
        corpus.training(length=18)[0][:] = 0
        corpus.evaluation("valid", length=18)[0].data[:] = 0
        assert corpus.fingerprint() == before


def test_epochs(text, pictures):
    assert text.split("train").epoch(100) == 45
    assert pictures.split("train").epoch(18) == 7


def test_fingerprints_tell_data_apart(text):
    for place in (0, 2000, -1):
        data = np.array(text.split("train").data)
        data[place] ^= 1
        other = Corpus(name="x", kind="text", splits={**text.splits, "train": Stream(data)})
        assert other.fingerprint() != text.fingerprint()
    assert len(text.fingerprint()) == 16


def test_a_summary_says_what_there_is(text, pictures):
    assert text.summary() == "noise: text, train 4,501 bytes, valid 502 bytes"
    assert pictures.summary() == "dots: image of 3x2x3, train 126 bytes, valid 72 bytes"


def test_what_does_not_fit_is_refused(text, pictures):
    with pytest.raises(RequestError, match=r"context of 4502 bytes: the data hold 4501"):
        text.training(length=4502)
    with pytest.raises(RequestError, match=r"502 bytes are fewer than a window of 503"):
        text.evaluation("valid", length=503)
    with pytest.raises(RequestError, match=r"context of 20 bytes: an image of these data has 18"):
        pictures.training(length=20)
    with pytest.raises(RequestError, match="minimum context 4: an image is scored whole"):
        pictures.evaluation("valid", length=18, min_context=4)
    with pytest.raises(
        RequestError, match="split 'test': noise has no such split; give one of train, valid"
    ):
        text.evaluation("test", length=5)
