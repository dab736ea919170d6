"""growth.py tells a pass over a text from a look at each pair of places."""

import re

import pytest

from tests.growth import check_growth, repeated


def test_a_pass_is_let_through_and_all_pairs_are_not():
    check_growth(re.compile("a b").search, repeated("a "))
    with pytest.raises(AssertionError, match="times as many"):
        check_growth(re.compile(r"\s+$").search, lambda length: " " * length + "x", 2_000)


def test_what_the_call_asserts_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        check_growth(lambda _: 1 / 0, repeated("a"))
