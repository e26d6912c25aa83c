"""Masking: in C and in Python, against the definition of RFC 6455 §5.3."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws.frames import mask_in_python, mask_joined_in_python

from .servers import missing
from .test_frames import KEY, bounded, plain_mask

Mask = Callable[[bytes, bytes, int, int], bytes]


IS_COMPILED = find_spec("geventws._mask") is not None


@pytest.fixture
def mask_in_c() -> Mask:
    if not IS_COMPILED:
        missing("the compiled geventws._mask (a C compiler when geventws was installed)")
    from geventws._mask import mask

    return mask


def assert_masks(masker: Mask, data: bytes, key: bytes, start: int, stop: int) -> None:
    masked = masker(data, key, start, stop)
    assert masked == plain_mask(data[start:stop], key)
    assert masker(masked, key, 0, len(masked)) == data[start:stop]


parts = st.binary(max_size=4096).flatmap(
    lambda data: st.tuples(st.just(data), *[st.integers(0, len(data)) for _ in range(2)]).map(
        lambda part: (part[0], *sorted(part[1:]))
    )
)


@pytest.mark.parametrize("size", [*range(20), 125, 1022, 1023, 1024, 1025, 1026, 1027, 4099])
def test_mask_equals_the_plain_definition_at_every_size(size: int) -> None:
    assert_masks(mask_in_python, bytes(index * 7 & 0xFF for index in range(size)), KEY, 0, size)


@bounded
@given(parts, st.binary(min_size=4, max_size=4))
def test_mask_of_a_part_is_its_own_inverse(part: tuple[bytes, int, int], key: bytes) -> None:
    data, start, stop = part
    assert_masks(mask_in_python, data, key, start, stop)


def test_mask_in_c_equals_the_plain_definition_at_every_size_and_place(mask_in_c: Mask) -> None:
    data = bytes(index * 7 & 0xFF for index in range(4099))
    for size in [*range(40), 125, 1024, 4090]:
        for start in range(9):
            assert_masks(mask_in_c, data, KEY, start, start + size)


def test_masking_joined_pieces_equals_masking_them_joined(mask_in_c: Mask) -> None:
    from geventws._mask import mask_joined

    for sizes in [(), (0,), (1,), (3, 5), (1, 0, 1, 2), (9, 4096, 7), (1023, 1, 1025)]:
        data = bytes(index * 7 & 0xFF for index in range(sum(sizes)))
        cuts = [0, *accumulate(sizes)]
        pieces: list[bytes | bytearray] = [data[start:stop] for start, stop in pairwise(cuts)]
        pieces[1::2] = map(bytearray, pieces[1::2])
        for masker in (mask_joined, mask_joined_in_python):
            assert masker(pieces, KEY) == plain_mask(data, KEY)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([b"1"],), TypeError),
        (((b"1",), KEY), TypeError),
        (([b"1"], bytearray(KEY)), TypeError),
        ((["1"], KEY), TypeError),
        (([b"1"], KEY[:3]), ValueError),
    ],
)
def test_masking_joined_pieces_in_c_refuses_what_is_none(
    mask_in_c: Mask, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    from geventws._mask import mask_joined

    with pytest.raises(error):
        mask_joined(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (b"12345678", KEY, 0),
        (b"12345678", KEY, 0, 8, 9),
        ("12345678", KEY, 0, 8),
        (bytearray(8), KEY, 0, 8),
        (b"12345678", "abcd", 0, 8),
        (b"12345678", KEY, 0.5, 8),
        (b"12345678", KEY, 0, None),
        (b"12345678", KEY[:3], 0, 8),
        (b"12345678", KEY * 2, 0, 8),
        (b"12345678", KEY, -1, 8),
        (b"12345678", KEY, 5, 4),
        (b"12345678", KEY, 0, 9),
        (b"12345678", KEY, 0, 1 << 63),
        (b"12345678", KEY, -(1 << 64), 8),
    ],
)
def test_mask_in_c_reads_nothing_outside_its_data(mask_in_c: Mask, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        mask_in_c(*arguments)


@pytest.mark.parametrize(("pure", "expected"), [("", "builtin_function_or_method"), ("1", "function")])
def test_compiled_mask_is_used_unless_pure_python_is_asked_for(mask_in_c: Mask, pure: str, expected: str) -> None:
    program = "from geventws.frames import mask; print(type(mask).__name__)"
    environ = {**os.environ, "GEVENTWS_PURE": pure}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
