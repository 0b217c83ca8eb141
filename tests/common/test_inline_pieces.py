import pytest

from qfleet.common.inline_pieces import MAX_PIECES, PIECE_BYTES, join, pieces_for, split

RAY_INLINE_BYTES = 100 * 1024
"""Ray's `max_direct_call_object_size`: a value above it goes into the object store."""


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, 1),
        (1, 1),
        (PIECE_BYTES, 1),
        (PIECE_BYTES + 1, 2),
        (3 * PIECE_BYTES, 3),
        (MAX_PIECES * PIECE_BYTES, MAX_PIECES),
        (MAX_PIECES * PIECE_BYTES + 1, 1),
        (10**9, 1),
    ],
)
def test_pieces_for_fills_whole_pieces_and_leaves_large_ones_whole(n_bytes, expected):
    assert pieces_for(n_bytes) == expected


@pytest.mark.parametrize("n_bytes", [0, 1, 2, 9, 10, 100_003, MAX_PIECES * PIECE_BYTES])
@pytest.mark.parametrize("n_pieces", [1, 2, 3, MAX_PIECES])
def test_split_makes_exactly_so_many_pieces_and_join_undoes_it(n_bytes, n_pieces):
    data = bytes(i % 251 for i in range(n_bytes))

    pieces = split(data, n_pieces)

    assert len(pieces) == n_pieces
    assert max(map(len, pieces)) == -(-n_bytes // n_pieces)
    assert join(pieces) == data


@pytest.mark.parametrize("n_bytes", range(PIECE_BYTES, MAX_PIECES * PIECE_BYTES, 70_001))
def test_pieces_asked_for_stay_below_rays_limit_with_room_for_its_envelope(n_bytes):
    pieces = split(bytes(n_bytes), pieces_for(n_bytes))

    assert max(map(len, pieces)) <= RAY_INLINE_BYTES - 4096
