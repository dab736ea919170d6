"""rewards/seccomp.py: the filter, run by an interpreter of classic BPF written here from the kernel's documentation."""

import platform
import struct

import pytest

from hf_cascade.rewards.seccomp import FAMILIES, MACHINES, REFUSED, SOCKET, build_filter

ALLOWED, REFUSAL, END = 0x7FFF0000, 0x00050001, 0x80000000


def decide(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """What the filter returns for a call, as struct seccomp_data has it."""
    data = struct.pack("<iIQ6Q", number, architecture, 0, argument, 0, 0, 0, 0, 0)
    steps = list(struct.iter_unpack("<HBBI", program))
    place = accumulator = 0
    while True:
        code, jump, other, value = steps[place]
        place += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x15:
            place += jump if accumulator == value else other
        elif code == 0x35:
            place += jump if accumulator >= value else other
        elif code == 0x06:
            return value


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_refuses_these_calls_and_no_others(machine):
    program, (column, architecture) = build_filter(machine), MACHINES[machine]
    refused = {row[column] for row in REFUSED.values()}
    assert len(refused) == len(REFUSED)
    for number in range(600):
        if number != SOCKET[column]:
            assert decide(program, architecture, number) == (REFUSAL if number in refused else ALLOWED), number
    for family in range(50):
        assert decide(program, architecture, SOCKET[column], family) == (ALLOWED if family in FAMILIES else REFUSAL)
    assert decide(program, architecture, 0x40000000 + 1) == REFUSAL  # x32
    assert decide(program, 0x40000003, 1) == END  # 32-bit


def test_another_machine_is_named():
    with pytest.raises(ValueError, match="not of riscv64"):
        build_filter("riscv64")


@pytest.mark.skipif(platform.machine() not in MACHINES, reason="this machine's numbers are not known")
def test_this_machine_is_the_default():
    assert build_filter() == build_filter(platform.machine())
