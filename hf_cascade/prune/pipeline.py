"""A whole pruning: look at the parent, decide, make the ends, rebuild layer by layer. Memory holds one layer at a time.

The same for a model in memory and a checkpoint on a disk; parent and writer know the difference.

D, k width of the parent's and child's stream, V vocabulary
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from hf_cascade import progress
from hf_cascade.anatomy import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    PROJECTOR,
    dissect,
    embedding_scale,
    family,
    is_tied,
)
from hf_cascade.prune.builder import ChildBuilder, read_map
from hf_cascade.prune.calibration import Calibration
from hf_cascade.prune.checkpoint import expected_weights
from hf_cascade.prune.child import child_config, is_own_shape, target_shape
from hf_cascade.prune.config import PruneConfig
from hf_cascade.prune.ends import norm_factor, read_head, rotated_embedding
from hf_cascade.prune.exit import Exit
from hf_cascade.prune.images import ProjectedImages
from hf_cascade.prune.layers import after_attention, after_ffn
from hf_cascade.prune.parent import Parent, skeleton
from hf_cascade.prune.plan import PrunePlan, make_plan
from hf_cascade.prune.projector import new_projector, parent_projector, prune_projector
from hf_cascade.prune.report import divergences, score_spectrum
from hf_cascade.prune.scores import FFN_SCORES, SIZE_MATTERS, Activations
from hf_cascade.prune.state import NoState
from hf_cascade.prune.statistics import check_finite, collect, scoring_text
from hf_cascade.prune.tie import fit_final_norm, merge_ends


@torch.no_grad()
def prune(
    parent: Parent,
    config: PruneConfig,
    batches: list[Tensor],
    held_out: int,
    make_writer,
    *,
    images: ProjectedImages | None = None,
    state=None,
) -> tuple[PreTrainedModel, dict]:
    """
    Prune a parent into a writer.

    Args:
        parent (`Parent`): the model.
        config (`PruneConfig`): target and method; checked.
        batches (`list[Tensor]`): [B, T] token ids.
        held_out (`int`): how many of them, the last ones, only measure.
        make_writer (`Callable[[PreTrainedModel], writer]`): for the child's skeleton.
        images (`ProjectedImages`, *optional*): of the batches that have some.
        state (*optional*): where a killed pruning is taken up again; see `prune.state`.

    Returns:
        `tuple[PreTrainedModel, dict]`: the child's skeleton and the report: `layer_scores`, `kept_layers`,
        `explained_variance`, `hidden_size`, `ffn_kept_score`, `ffn_spectra`, `ffn_share`, `calibration_tokens`, and
        where text was held out `held_out` (see `prune.report.divergences`).

    Raises:
        ValueError: missing or broken calibration, weights that are not finite.
    """
    state = state or NoState()
    if is_own_shape(parent.config, config):
        return _copy(parent, config, make_writer)
    check_calibration(batches[: len(batches) - held_out], parent)
    text = Calibration(parent, batches, held_out, images.features if images else {})
    shape = target_shape(parent.config, config)
    look = needs_statistics(parent, config, shape)
    fisher = config.hidden_basis == "fisher" and shape["hidden_size"] < parent.config.get_text_config().hidden_size
    layers = len(parent.parts.layers)
    with tqdm(total=layers * (1 + look * (1 + fisher)), desc="pruning", unit="layer", disable=None) as bar:

        def advance(count: int = 1):
            bar.update(count)
            progress.report(bar.n, bar.total, label="layers")

        job = state.load_job()
        if job is not None:
            job.child = skeleton(child_config(parent.config, config, job.plan.kept_layers), type(parent.model))
            job.writer = make_writer(job.child)
        if job is not None and state.load_job() is not None:  # the writer forgets decisions whose weights are gone
            advance(layers * look * (1 + fisher))
        else:
            job = begin(text, config, shape, advance if look else None, make_writer, images)
            state.save_job(job)
        embedding_Vk = job.writer.read(dissect(job.child).prefix + EMBEDDING)
        builder = ChildBuilder(text, job.plan, config, job.child, job.writer, embedding_Vk)
        x, spectra = rebuild(text, [builder], config, job.ffn_scores, state, advance)
    exits = finish(text, builder, job, x)
    report = job.plan.report() | {"ffn_kept_score": builder.ffn_kept_score, "ffn_spectra": spectra}
    report["ffn_share"] = shape["intermediate_size"] / parent.config.get_text_config().intermediate_size
    report["calibration_tokens"] = text.tokens
    if held_out:
        report["held_out"] = divergences(text, x, builder, exits)
    return job.child, report


@dataclass
class Job:
    """
    What is decided before the layers are rebuilt.

    Attributes:
        plan (`PrunePlan`): what stays.
        tie_scale (`float`): the final norm's gain of a merged tied child before its layers are fitted.
        ffn_scores (`list[Tensor]`): [F] a layer, where they were taken with the statistics.
        child (`PreTrainedModel`), writer: the child's skeleton, and where its weights go.
    """

    plan: PrunePlan
    tie_scale: float
    ffn_scores: list[Tensor]
    child: PreTrainedModel | None = None
    writer: object = None


def check_calibration(batches: list[Tensor], parent: Parent) -> None:
    """Raise `ValueError` unless there is text, of ids the parent knows."""
    if not batches:
        raise ValueError("pruning to a smaller shape needs calibration text: give token ids [windows, tokens]")
    vocabulary = parent.config.get_text_config().vocab_size
    if min(int(part.min()) for part in batches) < 0 or max(int(part.max()) for part in batches) >= vocabulary:
        raise ValueError(f"calibration holds ids outside 0 to {vocabulary - 1}: was it made by another tokenizer?")


def merges(parent: Parent, config: PruneConfig, shape: dict[str, int]) -> bool:
    """Whether two different matrices have to become one: a tied child whose parent's ends are not yet the child's."""
    tied = is_tied(parent.config) if config.tie_word_embeddings is None else config.tie_word_embeddings
    narrows = shape["hidden_size"] < parent.config.get_text_config().hidden_size
    return tied and (narrows or not is_tied(parent.config))


def needs_statistics(parent: Parent, config: PruneConfig, shape: dict[str, int]) -> bool:
    """Whether the parent must be looked at as a whole before its first layer can be rebuilt."""
    decoder = parent.config.get_text_config()
    fewer = any(shape[name] < getattr(decoder, name) for name in ("num_hidden_layers", "hidden_size"))
    scores = shape["intermediate_size"] < decoder.intermediate_size and config.compensation == "none"
    return fewer or scores or merges(parent, config, shape)


def begin(text: Calibration, config: PruneConfig, shape: dict[str, int], advance, make_writer, images) -> Job:
    """Look at the parent (unless `advance` is `None`), decide, and write everything but layers, final norm and head."""
    parent, statistics = text.parent, None
    decoder = parent.config.get_text_config()
    if advance is not None:
        score_ffn = shape["intermediate_size"] < decoder.intermediate_size and config.compensation == "none"
        looked_at = scoring_text(text, config, shape["hidden_size"] < decoder.hidden_size)
        statistics = collect(looked_at, config, shape, score_ffn, advance)
    plan = make_plan(statistics, config, shape, decoder.hidden_size, decoder.num_hidden_layers)
    job = start_child(parent, config, shape, plan, statistics, make_writer)
    del statistics  # its streams and matrices are not needed any more
    write_rest(parent, config, job, images)
    return job


def start_child(parent: Parent, config: PruneConfig, shape, plan: PrunePlan, statistics, make_writer) -> Job:
    """The child's skeleton, writer, embedding, and shared matrix where it is tied."""
    child = skeleton(child_config(parent.config, config, plan.kept_layers), type(parent.model))
    writer = make_writer(child)
    job = Job(plan, 1.0, statistics.ffn_scores if statistics else [], child, writer)
    embedding_VD = parent.embedding_VD()
    scale = embedding_scale(parent.config) / embedding_scale(child.config)
    dtype = torch.promote_types(embedding_VD.dtype, writer.dtype_of(dissect(child).prefix + EMBEDDING))
    embedding_Vk = rotated_embedding(embedding_VD, plan.rotation, scale, dtype, parent.device)
    del embedding_VD
    if merges(parent, config, shape):
        rotation_Dk = plan.rotation_or_identity(parent.config.get_text_config().hidden_size, parent.device)
        embedding_Vk, job.tie_scale = merge_ends(
            parent, embedding_Vk, rotation_Dk, statistics.final_stream, config.tie_merge
        )
    writer.write(dissect(child).prefix + EMBEDDING, embedding_Vk)
    return job


def write_rest(parent: Parent, config: PruneConfig, job: Job, images: ProjectedImages | None) -> None:
    """What is no part of the decoder: a wrapper's tower, byte for byte, and its projector."""
    prefix = dissect(job.child).prefix
    others = [name for name in expected_weights(job.child) if not name.startswith((prefix, PROJECTOR)) and name != HEAD]
    for name in others:
        job.writer.write(name, parent.read(name))
    if parent.parts.projector is None:
        return
    if config.projector == "reinit":
        projector = new_projector(job.child, config.seed)
    elif job.plan.rotation is None:
        projector = None
    else:
        seen = images.inner if images and config.compensation != "none" else []
        projector = prune_projector(parent_projector(parent), job.child, job.plan.rotation, seen, config.ridge)
    names = [name for name in expected_weights(job.child) if name.startswith(PROJECTOR)]
    new = None if projector is None else projector.state_dict()
    for name in names:
        job.writer.write(name, parent.read(name) if new is None else new[name.removeprefix(PROJECTOR)])


def rebuild(
    text: Calibration, builders: list[ChildBuilder], config: PruneConfig, ffn_scores: list[Tensor], state, advance
) -> tuple[list[Tensor], list[list[float]]]:
    """
    Let the parent's layers go by once.

    Args:
        text (`Calibration`): with its parent.
        builders (`list[ChildBuilder]`): the children.
        config (`PruneConfig`): how FFN columns are scored.
        ffn_scores (`list[Tensor]`): scores already taken, one a layer; empty, they are taken here.
        state: where a killed run is taken up; see `prune.state`.
        advance (`Callable`): called after each layer.

    Returns:
        `tuple[list[Tensor], list[list[float]]]`: the parent's final stream, and each kept layer's spectrum of scores.
    """
    parent = text.parent
    first, x, spectra = state.load_streams(builders) or (0, text.parent_entry(), [])
    advance(first)
    wanted = sorted({b.plan.intermediate_size for b in builders} - {parent.config.get_text_config().intermediate_size})
    # without fits, and with scores at hand, only held-out text has to run
    running = range(0 if any(b.fits for b in builders) or (wanted and not ffn_scores) else text.fitted, len(x))
    for number in range(first, len(parent.parts.layers)):
        layer = parent.layer(number)
        for builder in builders:
            builder.enter(number, layer, x)
        for batch in running:
            middle = after_attention(layer, x[batch].to(parent.device), text.arguments(number, batch))
            x[batch] = middle.to(parent.storage)
        for builder in builders:
            builder.attend(number, x)
        scores = {}
        for size in wanted if any(builder.keeps(number) for builder in builders) else ():
            if ffn_scores:
                scores[size] = ffn_scores[number]
            elif scores and config.ffn_score not in SIZE_MATTERS:
                scores[size] = next(iter(scores.values()))
            else:
                score_of = FFN_SCORES[config.ffn_score]
                scores[size] = score_of(layer, Activations(layer, x[: text.fitted], parent.device), size)
        spectra += [score_spectrum(score_F) for score_F in scores.values()]
        for builder in builders:
            builder.feed(number, layer, scores.get(builder.plan.intermediate_size))
        for batch in running:
            x[batch] = after_ffn(layer, x[batch].to(parent.device)).to(parent.storage)
            check_finite(x[batch], number)
        del layer
        for builder in builders:
            builder.settle(number, x)
        state.save_streams(number + 1, x, spectra, builders)
        advance(1)
    return x, spectra


def finish(text: Calibration, builder: ChildBuilder, job: Job, x: list[Tensor]) -> tuple[Exit, Exit]:
    """
    Write the final norm and head.

    Returns:
        `tuple[Exit, Exit]`: the child's exit, and the one it would have without compensation.
    """
    parent, config, plan = text.parent, builder.config, job.plan
    prefix, offset = dissect(job.child).prefix, family(job.child.config).gain_offset
    epsilon, fitted = builder.epsilons[1], text.fitted
    width = job.child.config.get_text_config().hidden_size
    embedding_Vk = job.writer.read(prefix + EMBEDDING)
    gain_D = parent.final_gain_D()
    factor = norm_factor(plan.rotation) if plan.rotation is not None and config.norm_factor else 1.0
    flat_k = torch.ones(width, dtype=parent.dtype, device=parent.device)
    own_shape = {"num_hidden_layers": 0, "intermediate_size": 0, "hidden_size": width}
    if is_tied(job.child.config):
        merged = merges(parent, config, own_shape)
        plain = Exit(flat_k * job.tie_scale if merged else gain_D, embedding_Vk.to(parent.device), epsilon)
        gain_k, head_Vk = plain.gain_D, plain.head_VD
        if builder.fits and merged:
            ids = torch.cat([part.flatten() for part in text.batches[:fitted]])
            # one more of each: a token that calibration lacks still has a logit
            frequency_V = torch.bincount(ids, minlength=len(embedding_Vk)) + 1
            streams = (x[:fitted], builder.stream[:fitted])
            gain_k = fit_final_norm(parent, embedding_Vk, job.tie_scale, *streams, epsilon, frequency_V)
    else:
        dtype = torch.promote_types(parent.stored, job.writer.dtype_of(HEAD))
        rotation_Dk = builder.rotation
        if plan.rotation is None:
            plain = Exit(gain_D, parent.head_VD().to(parent.device), epsilon)
        else:
            plain = Exit(flat_k * factor, read_head(parent.head_VD(), gain_D, rotation_Dk, dtype), epsilon)
        gain_k, head_Vk = plain.gain_D, plain.head_VD
        if builder.reads:
            read_Dk, scale = read_map(x[:fitted], builder.stream[:fitted], rotation_Dk, builder.epsilons, config.ridge)
            gain_k, head_Vk = flat_k * scale, read_head(parent.head_VD(), gain_D, read_Dk, dtype)
        job.writer.write(HEAD, head_Vk)
    job.writer.write(prefix + FINAL_NORM, gain_k - offset)
    return Exit(gain_k.to(parent.dtype), head_Vk.to(parent.device), epsilon), plain


def _copy(parent: Parent, config: PruneConfig, make_writer) -> tuple[PreTrainedModel, dict]:
    """The parent's own shape: every weight as it is; a new projector where one is asked for."""
    every_layer = list(range(len(parent.parts.layers)))
    child = skeleton(child_config(parent.config, config, every_layer), type(parent.model))
    writer = make_writer(child)
    new = {}
    if config.projector == "reinit" and parent.parts.projector is not None:
        state = new_projector(child, config.seed).state_dict()
        new = {PROJECTOR + name: value for name, value in state.items()}
    for name in expected_weights(child):
        writer.write(name, new[name] if name in new else parent.read(name))
    return child, {"kept_layers": every_layer}
