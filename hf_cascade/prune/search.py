"""Budget mode: which layers x hidden x FFN makes the best child of a given size, by measuring candidates. Ours.

Every candidate is built with all of its compensation on a part of the calibration text, and its divergence from the
parent is measured on the held-out part. One look at the parent serves them all, and its layers go by once for a group.
"""

import copy
import json
import math
import re
from dataclasses import asdict, dataclass, replace

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedConfig

from hf_cascade import progress
from hf_cascade.anatomy import EMBEDDING, dissect, family, is_tied
from hf_cascade.prune.builder import ChildBuilder
from hf_cascade.prune.calibration import Calibration
from hf_cascade.prune.child import DIMENSIONS, check_target, target_shape
from hf_cascade.prune.config import PruneArguments, PruneConfig
from hf_cascade.prune.draft import SEARCH, Draft
from hf_cascade.prune.parent import Parent
from hf_cascade.prune.pipeline import finish, rebuild, start_child
from hf_cascade.prune.plan import PrunePlan, top
from hf_cascade.prune.report import divergences
from hf_cascade.prune.state import NoState
from hf_cascade.prune.statistics import collect, scoring_text
from hf_cascade.prune.weights import EndsWriter
from hf_cascade.shape import count_total

# All ours: paper silent.
STEPS = 6  # values tried of layers and of the hidden size, evenly from the parent's down
SMALLEST = (0.5, 0.5, 0.125)  # of the parent's layers, hidden size and FFN: what is tried at least
FULL = 0.9  # of the budget a candidate must use
TEXT_SHARE = 0.25  # of the calibration tokens that candidates are fitted on
GROUP = 4  # children built at once: as many layers are in memory
UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass
class Candidate:
    """
    One shape.

    Attributes:
        num_hidden_layers (`int`), hidden_size (`int`), intermediate_size (`int`): its dimensions.
        parameters (`int`): all of it, a wrapper's tower included.
        kl (`float`, *optional*): KL(parent || child) a token on held-out text, compensated and without training.
    """

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    parameters: int
    kl: float | None = None

    def apply(self, config: PruneConfig) -> PruneConfig:
        """`config` with this shape."""
        return replace(config, **{name: getattr(self, name) for name in DIMENSIONS})


def parse_budget(text: str, whole: int, units: tuple[str, ...] = ("K", "M", "B")) -> float:
    """
    `3.4B`, `350M`, `40%` or `0.4` (of `whole`), or a plain number.

    Raises:
        ValueError: it is none of these, or nothing below `whole` and above zero.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%|[A-Za-z]*)\s*", str(text))
    unit = found[2].upper() if found else "?"
    if unit not in ("%", "", *units):
        raise ValueError(f"{text!r} is no size: give a number, one with {', '.join(units)}, or a share as 40% or 0.4")
    number = float(found[1])
    if unit == "%" or (unit == "" and number < 1):
        value = number * whole / (100 if unit == "%" else 1)
    else:
        value = number * UNITS[unit]
    if not 0 < value < whole:
        raise ValueError(f"{text!r} is {value:,.0f}: it must be above 0 and below {whole:,}, the parent's")
    return value


def default_multiple(hidden: int) -> int:
    """What hidden size and FFN are multiples of: 128 for fast kernels, less where the parent is small."""
    return min(128, 2 ** max(0, int(math.log2(hidden / 8))))


def enumerate_candidates(parent, config: PruneConfig, budget: float, multiple: int) -> list[Candidate]:
    """
    Shapes that fill the budget: for each number of layers and hidden size the widest FFN that fits.

    Dimensions that `config` names are kept. Sizes are multiples of `multiple`, the parent's own sizes apart; attention
    is never pruned.

    Args:
        parent (`PreTrainedConfig`): the parent's config.
        config (`PruneConfig`): fixed dimensions, tie.
        budget (`float`): parameters.
        multiple (`int`): see [`default_multiple`].

    Raises:
        ValueError: no shape fits.
    """
    decoder = parent.get_text_config()
    limits = [getattr(decoder, name) for name in DIMENSIONS]
    fixed = [getattr(config, name) for name in DIMENSIONS]
    layers = [fixed[0]] if fixed[0] else _grid(limits[0], SMALLEST[0], 1)
    of_heads = decoder.num_attention_heads if family(parent).hidden_multiple_of_heads else 1
    hidden = [fixed[1]] if fixed[1] else _grid(limits[1], SMALLEST[1], math.lcm(multiple, of_heads))
    widths = [fixed[2]] if fixed[2] else range(multiple, limits[2] + 1, multiple)
    widths = sorted({*widths, *([] if fixed[2] else [limits[2]])})
    tied = is_tied(parent) if config.tie_word_embeddings is None else config.tie_word_embeddings
    found = []
    for layer_count in layers:
        for width in hidden:
            sizes = {ffn: _count(parent, (layer_count, width, ffn), tied) for ffn in (widths[0], widths[-1])}
            slope = (sizes[widths[-1]] - sizes[widths[0]]) / max(widths[-1] - widths[0], 1)
            fitting = [ffn for ffn in widths if sizes[widths[0]] + (ffn - widths[0]) * slope <= budget + 0.5]
            if not fitting or (not fixed[2] and fitting[-1] < SMALLEST[2] * limits[2]):
                continue
            shape = (layer_count, width, fitting[-1])
            candidate = Candidate(*shape, _count(parent, shape, tied))
            if candidate.parameters >= FULL * budget and _is_possible(parent, candidate.apply(config)):
                found.append(candidate)
    if not found:
        smallest = _count(parent, (layers[-1], hidden[-1], max(widths[0], int(SMALLEST[2] * limits[2]))), tied)
        raise ValueError(
            f"no shape of this parent fills {budget:,.0f} parameters: the smallest that is tried has about "
            f"{smallest:,} (multiples of {multiple}); name the dimensions yourself for smaller ones"
        )
    return found


def _grid(limit: int, smallest: float, multiple: int) -> list[int]:
    """At most `STEPS` values from `limit` down to `smallest` of it, multiples of `multiple` below the first."""
    values = [limit]
    for step in range(1, STEPS):
        value = limit * (1 - (1 - smallest) * step / (STEPS - 1))
        values.append(max(multiple, round(value / multiple) * multiple))
    return sorted({value for value in values if value <= limit}, reverse=True)


def _count(parent, shape: tuple[int, int, int], tied: bool) -> int:
    """Parameters of a child of this shape."""
    child = copy.deepcopy(parent).to_dict()
    text = child.get("text_config", child)
    text["head_dim"] = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    text |= dict(zip(DIMENSIONS, shape, strict=True))
    child["tie_word_embeddings"] = text["tie_word_embeddings"] = tied
    return count_total(child)


def _is_possible(parent, config: PruneConfig) -> bool:
    try:
        check_target(parent, config)
    except ValueError:
        return False
    return True


@torch.no_grad()
def measure(parent: Parent, config: PruneConfig, text: Calibration, candidates: list[Candidate], advance) -> None:
    """
    Fill in every candidate's `kl`.

    Args:
        parent (`Parent`): the model.
        config (`PruneConfig`): method; its dimensions do not matter.
        text (`Calibration`): with held-out batches.
        candidates (`list[Candidate]`): shapes.
        advance (`Callable`): called after each parent layer.
    """
    config = replace(config, ffn_score="output") if config.ffn_score == "obs" else config  # one score for all widths
    decoder = parent.config.get_text_config()
    whole = {name: getattr(decoder, name) for name in DIMENSIONS}
    narrowest = whole | {"hidden_size": min(c.hidden_size for c in candidates)}
    statistics = collect(scoring_text(text, config, True), config, narrowest, False, advance)
    every_layer = list(range(decoder.num_hidden_layers))
    scores = torch.tensor(statistics.layer_scores, dtype=torch.float64)
    rotations = {}
    for width in {c.hidden_size for c in candidates} - {decoder.hidden_size}:
        rotations[width] = statistics.directions(config.hidden_basis, every_layer, width)[0]
    part = Calibration(
        parent,
        [*text.spread(TEXT_SHARE * text.tokens).batches, *text.batches[text.fitted :]],
        text.held_out,
    )
    for start in range(0, len(candidates), GROUP):
        group, builders, jobs = candidates[start : start + GROUP], [], []
        for candidate in group:
            changed = candidate.apply(config)
            plan = PrunePlan(
                top(scores, candidate.num_hidden_layers).tolist(),
                candidate.intermediate_size,
                rotations.get(candidate.hidden_size),
            )
            shape = target_shape(parent.config, changed)
            job = start_child(
                parent, changed, shape, plan, statistics, lambda _: EndsWriter(parent.stored_dtype, parent.storage)
            )
            embedding_Vk = job.writer.read(dissect(job.child).prefix + EMBEDDING)
            builders.append(ChildBuilder(part, plan, changed, job.child, job.writer, embedding_Vk, measures=False))
            jobs.append(job)
        x, _ = rebuild(part, builders, config, [], NoState(), advance)
        for candidate, builder, job in zip(group, builders, jobs, strict=True):
            exits = finish(part, builder, job, x)
            candidate.kl = divergences(part, x, builder, exits)["kl"]


def budget(arguments: PruneArguments, parent: PreTrainedConfig) -> tuple[float, int]:
    """
    Parameters to fill, and what sizes are multiples of.

    Raises:
        ValueError: no size, two sizes, or a multiple that cannot be.
    """
    if arguments.target_parameters and arguments.target_memory:
        raise ValueError("target_parameters and target_memory: give one of them")
    hidden = parent.get_text_config().hidden_size
    multiple = default_multiple(hidden) if arguments.multiple_of is None else arguments.multiple_of
    if not 1 <= multiple <= hidden:
        raise ValueError(f"multiple_of={multiple}: allowed is 1 to {hidden}, the parent's hidden size")
    whole = count_total(parent.to_dict())
    if arguments.target_parameters:
        return parse_budget(arguments.target_parameters, whole), multiple
    stored = parent.dtype if arguments.dtype == "auto" else arguments.dtype
    stored = getattr(torch, stored) if isinstance(stored, str) else stored or torch.bfloat16
    memory = parse_budget(arguments.target_memory, whole * stored.itemsize, ("KB", "MB", "GB", "KIB", "MIB", "GIB"))
    return memory / stored.itemsize, multiple


def find_shape(
    draft: Draft, parent: Parent, config: PruneConfig, searches: tuple[float, int], text: Calibration
) -> tuple[PruneConfig, list[dict]]:
    """
    Search, show the frontier, and remember it in the draft.

    Args:
        draft (`Draft`): keeps what was found, so that a killed pruning does not search again.
        parent (`Parent`): the model.
        config (`PruneConfig`): method, and dimensions that are fixed.
        searches (`tuple[float, int]`): from [`budget`].
        text (`Calibration`): with held-out batches.

    Returns:
        `tuple[PruneConfig, list[dict]]`: `config` with the best shape, and the frontier, best first.

    Raises:
        ValueError: no shape fits, or there is no text to measure on.
    """
    kept = draft.folder / SEARCH
    if kept.is_file():
        candidates = [Candidate(**row) for row in json.loads(kept.read_text())]
    else:
        if not text.held_out:
            raise ValueError("a search measures on held-out text: give more calibration text, or --heldout FILE")
        candidates = enumerate_candidates(parent.config, config, *searches)
        layers, groups = len(parent.parts.layers), math.ceil(len(candidates) / GROUP)
        looks = 1 + (config.hidden_basis == "fisher")
        title = f"searching {len(candidates)} shapes"
        with tqdm(total=layers * (groups + looks), desc=title, unit="layer", disable=None) as bar:

            def advance(count: int = 1):
                bar.update(count)
                progress.report(bar.n, bar.total, label="layers searched")

            measure(parent, config, text, candidates, advance)
        candidates.sort(key=lambda candidate: candidate.kl)
        kept.write_text(json.dumps([asdict(candidate) for candidate in candidates]))
    Console().print(table(candidates))
    return candidates[0].apply(config), [asdict(candidate) for candidate in candidates]


def table(candidates: list[Candidate]) -> Table:
    """The frontier for a person, best first."""
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("layers", "hidden", "FFN", "parameters", "KL to the parent"):
        view.add_column(name, justify="right")
    for candidate in candidates:
        sizes = [f"{getattr(candidate, name):,}" for name in (*DIMENSIONS, "parameters")]
        view.add_row(*sizes, f"{candidate.kl:.4f}")
    return view
