"""What `benchmarks/prune.py` compares: our options, others' methods in our code, and others' packages."""

import copy
import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from hf_cascade import PruneConfig, prune_model

DIMENSIONS = ("num_hidden_layers", "hidden_size", "intermediate_size")
DEPTH, WIDTH, FFN = DIMENSIONS
BATCH = 16  # calibration windows at once, for every method

# Others' choices in our code: they select, and re-fit nothing.
OTHERS = {"norm_factor": False, "compensation": "none", "tie_merge": "average", "balance": False}
MINITRON = {"layer_score": "cosine", "hidden_basis": "channels", "ffn_score": "minitron", **OTHERS}
MAGNITUDE = {"layer_score": "cosine", "hidden_basis": "magnitude", "ffn_score": "magnitude", **OTHERS}
SHORTGPT = {"layer_score": "cosine", **OTHERS}


def cuts(config, shape: dict) -> set[str]:
    """Which dimensions of a parent with this config the shape makes smaller."""
    decoder = config.get_text_config()
    return {name for name in DIMENSIONS if shape.get(name, math.inf) < getattr(decoder, name)}


def ffn_width(model) -> int:
    """Columns of every FFN."""
    return model.config.get_text_config().intermediate_size


@dataclass(frozen=True)
class Method:
    """
    One row of the table.

    Attributes:
        label (`str`): its name there.
        on (`Callable`): whether it says something of its own at a shape with these cuts.
        changes (`dict`, *optional*): of `PruneConfig`; for what our own code does.
        peer (`Callable`, *optional*): (parent, FFN width, calibration) to child; for what another package does.
        package (`str`, *optional*): that package on PyPI.
    """

    label: str
    on: Callable[[set], bool]
    changes: dict | None = None
    peer: Callable | None = None
    package: str | None = None

    def missing(self) -> bool:
        """Whether its package is not installed. One that is, is imported, so that the import is not timed."""
        module = (self.package or "hf_cascade").replace("-", "_")
        if importlib.util.find_spec(module) is None:
            return True
        importlib.import_module(module)
        return False

    def prune(self, parent, shape: dict, calibration_NT: Tensor):
        """The child, of the parent's stock class."""
        if self.peer is None:
            return prune_model(parent, PruneConfig(**shape, **self.changes), calibration_NT, batch_size=BATCH)
        return stock(parent, self.peer(copy.deepcopy(parent), shape[FFN], calibration_NT), shape[FFN])


def stock(parent, pruned: nn.Module, width: int):
    """A peer's weights in a model made from a stock config; fails unless every layer has this very width."""
    config = copy.deepcopy(parent.config)
    config.get_text_config().intermediate_size = width
    child = type(parent)._from_config(config, dtype=parent.dtype)
    child.load_state_dict(pruned.state_dict())
    return child.eval()


def optipfair(model, width: int, calibration_NT: Tensor):
    """Pairs of gate and up rows by the range of their weights (its default)."""
    from optipfair import prune_model as optipfair_prune

    full = ffn_width(model)
    share = 100 * (full - width + 0.5) / full  # it rounds the number of pruned pairs down
    return optipfair_prune(model, pruning_percentage=share, show_progress=False)


def optipfair_data(model, width: int, calibration_NT: Tensor):
    """The same ranges, also of the down projection, times the norms of the activations (its data-driven mode)."""
    from optipfair import prune_model as optipfair_prune

    full = ffn_width(model)
    batches = [{"input_ids": part} for part in calibration_NT.split(BATCH)]
    share = 100 * (full - width + 0.5) / full
    return optipfair_prune(model, pruning_percentage=share, dataloader=batches, show_progress=False)


def torch_pruning(model, width: int, calibration_NT: Tensor, importance: str = "GroupMagnitudeImportance"):
    """Groups of gate row, up row and down column, by their norms or by `importance`; the same share of every layer."""
    import torch_pruning as tp

    makers = [part for name, part in model.named_modules() if name.endswith(("gate_proj", "up_proj"))]
    linear = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Embedding)]
    pruner = tp.pruner.BasePruner(
        model,
        {"input_ids": calibration_NT[:1], "use_cache": False},
        importance=getattr(tp.importance, importance)(),
        pruning_ratio=1 - width / ffn_width(model),
        ignored_layers=[part for part in linear if part not in makers],
        root_module_types=[nn.Linear],
    )
    pruner.step()
    return model


def torch_pruning_taylor(model, width: int, calibration_NT: Tensor):
    """The same groups by weight times gradient, summed (LLM-Pruner's first-order criterion)."""
    for part in calibration_NT.split(BATCH):
        model(input_ids=part, labels=part, use_cache=False).loss.backward()
    return torch_pruning(model, width, calibration_NT, "GroupTaylorImportance")


def _ffn_only(cut: set) -> bool:
    return cut == {FFN}


METHODS = {
    "printed": Method("paper, as printed", lambda cut: WIDTH in cut, {"method": "paper", "norm_factor": False}),
    "paper": Method("paper, with norm factor", bool, {"method": "paper"}),
    "minitron": Method("Minitron-style channels", lambda cut: cut != {DEPTH}, MINITRON),
    "magnitude": Method("magnitude", lambda cut: cut != {DEPTH}, MAGNITUDE),
    "shortgpt": Method("ShortGPT-style layers", lambda cut: cut == {DEPTH}, SHORTGPT),
    "optipfair": Method("optipfair", _ffn_only, None, optipfair, "optipfair"),
    "optipfair-data": Method("optipfair, data-driven", _ffn_only, None, optipfair_data, "optipfair"),
    "torch-pruning": Method("torch-pruning, magnitude", _ffn_only, None, torch_pruning, "torch-pruning"),
    "torch-pruning-taylor": Method("torch-pruning, Taylor", _ffn_only, None, torch_pruning_taylor, "torch-pruning"),
    "ours": Method("ours, recommended", bool, {"method": "compensated"}),
}

# The pieces of the recommended option, switched one at a time; its own choice is left out, whatever it is.
PIECES = {
    "layer_score": ("ratio", "cosine", "loss_drop"),
    "hidden_basis": ("stream", "normed", "fisher"),
    "norm_factor": (True, False),
    "ffn_score": ("mean_abs", "output", "obs", "wanda"),
    "compensation": ("none", "write", "read_write"),
    "tie_merge": ("average", "least_squares"),
    "balance": (True, False),
    "ridge": (1e-1, 1e-2, 1e-3),
}
# The cut without which a piece decides nothing.
NEEDS = {"layer_score": DEPTH, "hidden_basis": WIDTH, "norm_factor": WIDTH, "ffn_score": FFN}


def variants(config, shape: dict) -> list[Method]:
    """The recommended option, then one method for each piece of it that decides something here, switched."""
    own, cut = PruneConfig(), cuts(config, shape)
    merges = shape.get("tie_word_embeddings") and not config.tie_word_embeddings
    methods = [Method("recommended", bool, {})]
    for piece, choices in PIECES.items():
        if NEEDS.get(piece) not in {None, *cut} or (piece == "tie_merge" and not merges):
            continue
        for choice in choices:
            if choice != getattr(own, piece):
                methods.append(Method(f"{piece} {choice}", bool, {piece: choice}))
    return methods
