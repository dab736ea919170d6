"""Named machines as data: what a card multiplies, holds and exchanges, from its maker's data sheet. Needs no torch."""

import math
import re
from dataclasses import dataclass, replace

CARDS_A_MACHINE = re.compile(r"(?:(\d+)x)?(.+)")
CUSTOM, CPU = "custom", "cpu"


@dataclass(frozen=True)
class Card:
    """
    One accelerator. Rates are dense: NVIDIA's sheets print twice as much, "with sparsity", which no training reaches.

    Attributes:
        name (`str`): what `--machine` calls it.
        tflops (`dict[str, float]`): type of the factors (`bfloat16`, `float8`, `float32`) to 10^12 multiplications and
            additions a second in matrix products. float16 is as bfloat16; float32 is without TF32, torch's default.
        memory_gb (`float`, *optional*): memory in 10^9 bytes, as printed. Cards of "80 GB" hold up to 80 x 2^30: what
            that is more stays for driver, context and fragmentation. None: not known.
        memory_tb_per_second (`float`, *optional*): how fast that memory is read at most, in 10^12 bytes.
        link_gb_per_second (`float`, *optional*): to the other cards of its machine, one way, in 10^9 bytes: half of
            the sheets' figure, which adds both ways.
        device_name (`str`): what `torch.cuda.get_device_name` says.
        source (`str`): where the numbers are from.
    """

    name: str
    tflops: dict[str, float]
    memory_gb: float | None
    memory_tb_per_second: float | None
    link_gb_per_second: float | None
    device_name: str
    source: str


# name, bfloat16, float8, float32, GB, TB/s, link, torch's name, source. TB/s: the same sheets as others quote them; not
# verified in the sheets themselves. h100-pcie: "greater than 2,000" GB/s in NVIDIA's product brief PB-11133-001.
# b200: not verified, "up to 8" in most tables, while some of its boards are said to reach 7.7.
_SHEETS = (
    ("h100-80gb", 989.4, 1978.9, 66.9, 80, 3.35, 450, "NVIDIA H100 80GB HBM3", "NVIDIA's H100 data sheet, SXM"),
    ("h100-pcie-80gb", 756, 1513, 51, 80, 2.0, 64, "NVIDIA H100 PCIe", "NVIDIA's H100 data sheet, PCIe"),
    ("h200-141gb", 989.4, 1978.9, 66.9, 141, 4.8, 450, "NVIDIA H200", "NVIDIA's H200 data sheet, SXM"),
    ("b200-180gb", 2250, 4500, 75, 180, 8.0, 900, "NVIDIA B200", "NVIDIA's HGX B200 data sheet"),
    ("a100-80gb", 312, None, 19.5, 80, 2.039, 300, "NVIDIA A100-SXM4-80GB", "NVIDIA's A100 data sheet, SXM"),
    ("a100-40gb", 312, None, 19.5, 40, 1.555, 300, "NVIDIA A100-SXM4-40GB", "NVIDIA's A100 data sheet, SXM"),
    ("l40s-48gb", 362, 733, 91.6, 48, 0.864, 32, "NVIDIA L40S", "NVIDIA's L40S data sheet; link: PCIe 4"),
    ("l4-24gb", 121, 242, 30.3, 24, 0.3, 32, "NVIDIA L4", "NVIDIA's L4 data sheet; link: PCIe 4"),
    ("rtx4090-24gb", 165.2, 330.3, 82.6, 24, 1.008, 32, "NVIDIA GeForce RTX 4090", "NVIDIA's Ada paper; link: PCIe 4"),
    ("mi300x-192gb", 1307.4, 2614.9, 163.4, 192, 5.3, 448, "AMD Instinct MI300X", "AMD's MI300X data sheet"),
)
CARDS = {
    name: Card(name, {"bfloat16": half, "float32": single} | ({"float8": quarter} if quarter else {}), *rest)
    for name, half, quarter, single, *rest in _SHEETS
}


@dataclass(frozen=True)
class Machine:
    """
    Cards of one kind.

    Attributes:
        name (`str`): as given: `8xh100-80gb`.
        card (`Card`): what each is.
        gpus (`int`): how many; processes, on a CPU.
    """

    name: str
    card: Card
    gpus: int

    def peak_flops(self, dtype: str) -> float | None:
        """FLOP/s of one card in matrix products of `dtype`, or `None` where that is not known."""
        rate = self.card.tflops.get("bfloat16" if dtype == "float16" else dtype)
        return None if rate is None else rate * 1e12

    @property
    def memory_bytes(self) -> float | None:
        """Memory of one card."""
        return None if self.card.memory_gb is None else self.card.memory_gb * 1e9


def find_machine(
    name: str | None, gpus: int | None = None, tflops: float | None = None, memory_gb: float | None = None
) -> Machine:
    """
    A machine by name, or one described in numbers.

    Args:
        name (`str`, *optional*):
            A key of [`CARDS`] or `cpu`, a count before it (`8xh100-80gb`); a name may be cut short where one card alone
            begins like that. Unset, a machine of which only the numbers below are known.
        gpus (`int`, *optional*): how many; before the name's own count. Unset, 1.
        tflops (`float`, *optional*): 10^12 FLOP/s of one card, whatever the type; before the data sheet's.
        memory_gb (`float`, *optional*): 10^9 bytes of one card; before the data sheet's.

    Raises:
        ValueError: no such card, or a number that is not above 0.
    """
    for flag, value in (("--gpus", gpus), ("--tflops", tflops), ("--memory", memory_gb)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{flag} {value}: it must be a number above 0")
    count, kind = CARDS_A_MACHINE.fullmatch(name or CUSTOM).groups()
    count = int(count) if count and gpus is None else gpus or 1
    if count < 1:
        raise ValueError(f"--machine {name}: a machine has at least 1 card")
    card = _find_card(kind.lower())
    if tflops is not None:
        card = replace(card, tflops=dict.fromkeys(("bfloat16", "float8", "float32"), tflops), source="--tflops")
    if memory_gb is not None:
        card = replace(card, memory_gb=memory_gb)
    return Machine(name or CUSTOM, card, count)


def _find_card(kind: str) -> Card:
    if kind in (CUSTOM, CPU):
        return Card(kind, {}, None, None, None, "", "")
    matches = [card for name, card in CARDS.items() if name == kind] or [
        card for name, card in CARDS.items() if name.startswith(f"{kind}-")
    ]
    if len(matches) != 1:
        among = f"; {kind!r} may be {' or '.join(card.name for card in matches)}" if matches else ""
        raise ValueError(
            f"--machine {kind}: allowed are {', '.join(CARDS)} and {CPU}, with a count before it as in "
            f"8xh100-80gb{among}; describe any other with --tflops and --memory"
        )
    return matches[0]


def peak_flops(device_name: str, dtype: str) -> float | None:
    """
    Dense FLOP/s of the card torch calls `device_name`, or `None` for one that is not listed (a slice of a card, say).

    Args:
        device_name (`str`): from `torch.cuda.get_device_name`.
        dtype (`str`): type of the factors: bfloat16, float16, float8 or float32.
    """
    card = next((card for card in CARDS.values() if device_name == card.device_name), None)
    return None if card is None else Machine(card.name, card, 1).peak_flops(dtype)
