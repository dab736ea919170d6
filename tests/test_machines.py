"""machines.py: names, counts, numbers of one's own, and data sheets that cannot be the sparse ones."""

import pytest

from hf_cascade.machines import CARDS, find_machine, peak_flops


def test_names_counts_and_short_names():
    machine = find_machine("8xh100-80gb")
    assert (machine.gpus, machine.card.name, machine.memory_bytes) == (8, "h100-80gb", 80e9)
    assert machine.peak_flops("bfloat16") == machine.peak_flops("float16") == pytest.approx(989.4e12)
    assert find_machine("h200").card is CARDS["h200-141gb"] and find_machine("h200").gpus == 1
    assert find_machine("8xh200", gpus=64).gpus == 64
    assert find_machine("L40S", gpus=2).card.name == "l40s-48gb"


def test_a_machine_in_numbers():
    machine = find_machine(None, gpus=4, tflops=100, memory_gb=64)
    assert (machine.gpus, machine.peak_flops("float32"), machine.memory_bytes) == (4, 1e14, 64e9)
    assert find_machine("cpu").peak_flops("float32") is None and find_machine("cpu").memory_bytes is None
    assert find_machine("h200", tflops=500).peak_flops("bfloat16") == 5e14
    assert find_machine("h200", tflops=500).card.memory_tb_per_second == 4.8
    assert find_machine("cpu").card.memory_tb_per_second is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "h1000"}, "allowed are h100-80gb, .* and cpu"),
        ({"name": "h100"}, "'h100' may be h100-80gb or h100-pcie-80gb"),
        ({"name": "0xh200"}, "at least 1 card"),
        ({"name": "h200", "gpus": 0}, "--gpus 0"),
        ({"name": None, "tflops": -1.0}, "--tflops -1.0"),
        ({"name": None, "memory_gb": float("nan")}, "--memory nan"),
        ({"name": None, "tflops": float("inf")}, "--tflops inf"),
        ({"name": ""}, None),
    ],
)
def test_bad_machines(given, words):
    if words is None:
        assert find_machine(**given).card.name == "custom"
        return
    with pytest.raises(ValueError, match=words):
        find_machine(**given)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_data_sheets_hang_together(card):
    """A sparse figure among dense ones shows: NVIDIA's and AMD's 8-bit rate is twice the 16-bit one."""
    assert card.source and card.device_name and card.memory_gb > 0 and card.link_gb_per_second > 0
    seconds = card.memory_gb / 1000 / card.memory_tb_per_second  # to read all of it once
    assert 0.01 < seconds < 0.1 and 1000 * card.memory_tb_per_second > card.link_gb_per_second
    assert f"-{card.memory_gb}gb" in card.name
    assert card.tflops["float32"] < card.tflops["bfloat16"] < 2500  # no card's dense rate is more
    if "float8" in card.tflops:
        assert card.tflops["float8"] == pytest.approx(2 * card.tflops["bfloat16"], rel=0.02)


def test_cards_by_the_name_torch_has_for_them():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == pytest.approx(989.4e12)
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float32") == pytest.approx(19.5e12)
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float8") is None
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16") is None  # a slice is no whole card
