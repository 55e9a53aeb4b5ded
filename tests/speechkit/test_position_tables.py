import pytest
import torch

from speechkit.errors import RequestError
from speechkit.position_tables import ByteEmbedding, PositionTables


def test_positions_are_digits():
    tables = PositionTables((2, 3, 4), 5)
    row, column, channel = (table.weight for table in tables.tables)
    vectors = tables(torch.arange(24))
    assert tables.positions == 24
    for place, (r, c, h) in enumerate(
        (r, c, h) for r in range(2) for c in range(3) for h in range(4)
    ):
        torch.testing.assert_close(vectors[place], row[r] + column[c] + channel[h])


def test_step_t_carries_token_and_position_before_it():
    embedding = ByteEmbedding(256, (4, 3), 8)
    tokens = torch.randint(256, (2, 11), dtype=torch.uint8)
    steps = embedding(tokens)
    assert steps.shape == (2, 11, 8)
    assert torch.equal(steps[:, 0], embedding.start.expand(2, -1))
    for step in (1, 2, 10):
        expected = embedding.token(tokens[:, step - 1].long())
        expected = expected + embedding.position.tables[0].weight[(step - 1) // 3]
        expected = expected + embedding.position.tables[1].weight[(step - 1) % 3]
        torch.testing.assert_close(steps[:, step], expected)


def test_tokens_are_embedded_anywhere_for_sampling():
    embedding = ByteEmbedding(256, (4, 3), 8)
    tokens = torch.randint(256, (2, 12))
    steps = embedding(tokens)
    later = embedding.embed(tokens[:, 6:9], torch.arange(6, 9))
    assert torch.equal(steps[:, 7:10], later)


@pytest.mark.parametrize("steps", [0, 1, 12])
def test_lengths_up_to_the_tables(steps):
    assert ByteEmbedding(256, (4, 3), 8)(torch.zeros(1, steps).long()).shape == (1, steps, 8)


def test_longer_sequences_are_refused():
    with pytest.raises(RequestError, match=r"13 steps.*over 12"):
        ByteEmbedding(256, (4, 3), 8)(torch.zeros(1, 13).long())


def test_initial_size():
    embedding = ByteEmbedding(256, (400, 300), 64)
    assert embedding.token.weight.std().item() == pytest.approx(0.125 / 8, rel=0.05)
    row = embedding.position.tables[0].weight
    assert row.std().item() == pytest.approx(0.125 / (64 * 2) ** 0.5, rel=0.05)
