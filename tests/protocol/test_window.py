from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import limits
from p2pmesh.protocol.window import Place, Window


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), max_size=60))
def test_each_number_is_taken_once_and_none_below_the_floor(
    offers: list[tuple[int, int]],
) -> None:
    window, taken, floor = Window(), set[int](), 1
    for seq, low in offers:
        low = min(low, seq)
        place = window.take(seq, low)
        floor = max(floor, low)
        if seq in taken or seq < floor:
            assert place is Place.TAKEN
        elif place is Place.NEW:
            taken.add(seq)
        else:
            assert place is Place.BEYOND
            assert seq > window.watermark + limits.CAST_WINDOW
        assert window.bits < 2**limits.CAST_WINDOW


def test_numbers_in_order_leave_no_bits() -> None:
    window = Window()
    for seq in range(1, 5000):
        assert window.take(seq, 1) is Place.NEW
    assert (window.watermark, window.bits) == (4999, 0)


def test_a_number_beyond_the_window_is_taken_once_the_floor_has_risen() -> None:
    window = Window()
    assert window.take(2, 1) is Place.NEW
    assert window.take(2000, 1) is Place.BEYOND
    assert window.take(2000, 1990) is Place.NEW
    assert window.take(1990, 1990) is Place.NEW
    assert window.take(1, 1) is Place.TAKEN  # settled: the sender said so
