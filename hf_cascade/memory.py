"""Bytes on each GPU in a training step, from config.json dicts alone.

Activations are what autograd saves, read off transformers' code and compared with it (`tests/test_memory.py`).
What a CPU cannot show (gathered weights, kernels' workspaces) is arithmetic from the code of FSDP2, DeepSpeed and
accelerate; it has not been measured.
"""

from dataclasses import dataclass, replace

from hf_cascade.anatomy import FAMILIES
from hf_cascade.costs import end_parameters, head_parameters, layer_parameters
from hf_cascade.shape import attention_sizes, count_parameters, count_total, text_config

SHARDINGS = ("none", "fsdp2", "zero3")
LOSS_BUFFER_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}  # `CHUNK_BYTES` of distill/loss.py, which needs torch
LOSS_BUFFERS = 3.5  # two models' logits, a spare one, and the gradient rounded for its products
TILE = (4096, 32768)  # tokens and words of TRL's head at once (trl/kernels/chunked_logprob.py, trl/trainer/utils.py)
TILE_COPIES = {"cpu": 9, "cuda": 0}  # fp32 copies of a tile while torch folds it; Triton's kernel works in place
GATHERED_LAYERS = 2  # the one at work and the next, whose gathering has begun


@dataclass(frozen=True)
class Setup:
    """
    How a stage trains: what its memory depends on beside the models.

    Attributes:
        max_length (`int`): tokens of a row.
        rows (`int`): rows of one process at a time.
        accumulation (`int`): such batches before an optimizer step.
        gpus (`int`): processes.
        sharding (`str`): `none`, `fsdp2` or `zero3`.
        sequence_parallel (`int`): processes that share a row (DeepSpeed's, with FlashAttention and `zero3`).
        checkpointing (`bool`): gradient checkpointing.
        weight_bytes (`int`): of a weight as it is loaded.
        compute_bytes (`int`): of a factor in a matrix product: 2 under bf16 or fp16.
        teacher_bytes (`int`): of a teacher's weight.
        attention (`str`): transformers' name of the kernel.
        sync_each_batch (`bool`): FSDP2 reduces gradients after every batch of an accumulation, not the last alone.
        trained (`float`): share of the weights that get gradients and optimizer states.
        chunk_tokens (`int`, *optional*): rows of logits at once.
        device (`str`): `cuda` or `cpu`.
        trl_head (`bool`): log-probabilities by TRL's fused head, as in Online DPO, GRPO and next-token training; else
            the fused loss of `distill/loss.py`. Neither makes whole logits.
        teacher_is_here (`bool`): not served by another process, nor read from a cache.
        packed (`bool`): rows are full of documents; else each is one conversation, padded.
        fewest_rows (`int`): rows that must be in one batch: 2 where they are a pair.
    """

    max_length: int
    rows: int = 8
    accumulation: int = 1
    gpus: int = 1
    sharding: str = "none"
    sequence_parallel: int = 1
    checkpointing: bool = True
    weight_bytes: int = 4
    compute_bytes: int = 2
    teacher_bytes: int = 4
    attention: str = "sdpa"
    sync_each_batch: bool = False
    trained: float = 1.0
    chunk_tokens: int | None = None
    device: str = "cuda"
    trl_head: bool = False
    teacher_is_here: bool = True
    packed: bool = True
    fewest_rows: int = 1

    @property
    def tokens(self) -> float:
        """Tokens of one batch on one GPU."""
        return self.rows * self.max_length / self.sequence_parallel

    @property
    def shards(self) -> int:
        """Over how many GPUs weights are spread."""
        return 1 if self.sharding == "none" else self.gpus

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step, all processes together."""
        return self.rows * self.accumulation * self.max_length * self.gpus // self.sequence_parallel

    @property
    def keeps_whole_gradients(self) -> bool:
        """Whether every GPU holds the gradients of all weights: FSDP2 while it accumulates without reducing them."""
        return self.sharding == "fsdp2" and self.accumulation > 1 and not self.sync_each_batch

    @property
    def masked(self) -> bool:
        """Whether packed documents are kept apart by a mask over the square of the row, not by the kernel."""
        return "flash" not in self.attention

    def changed(self, **changes) -> "Setup":
        """Another setup."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Memory:
    """
    Bytes on each GPU when a step is at its peak.

    Attributes:
        student (`float`): weights, gradients and AdamW's two states, of this GPU's share.
        teacher (`float`): the teacher's weights, of this GPU's share.
        gathered (`float`): what a GPU holds of the others' shares, or of weights in a second type.
        activations (`float`): what is kept for the backward pass.
        loss (`float`): logits, heads' gradients and hidden states.
    """

    student: float
    teacher: float
    gathered: float
    activations: float
    loss: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.student + self.teacher + self.gathered + self.activations + self.loss


def layer_activation_bytes(config: dict, setup: Setup) -> float:
    """
    Bytes that one decoder layer saves for its backward pass, for one token, the mask's square left out.

    With D, F the widths of stream and FFN, H = heads x head_dim, K the same of the keys; c bytes of a factor:
    where the stream is in fp32 (autocast over fp32 weights), norms save 16 D and every linear layer its own rounded
    input, 5 c D; where it is in bf16, norms save 8 D + 2 c D, and 2 c D are read by several. Attention saves queries,
    keys, values and its output, the FFN four tensors of F.
    """
    text, (heads, key_value_heads, head_dim) = text_config(config), attention_sizes(config)
    family, c = FAMILIES[text["model_type"]], setup.compute_bytes
    hidden, queries, keys = text["hidden_size"], heads * head_dim, key_value_heads * head_dim
    if c == 4:
        stream = 6 * 4 * hidden  # both norms: input, normalised, output
    elif _stream_bytes(setup) == 4:
        stream = (16 + 5 * c) * hidden
    else:
        stream = (8 + 4 * c) * hidden
        if family.gain_offset:  # Gemma's norms multiply by the gain in fp32
            stream += 2 * (4 - c) * hidden
    attended = 3 * queries if setup.masked and queries != keys else queries + 2 * keys  # a mask wants keys repeated
    attention = c * (attended + queries) + (4 * heads if setup.attention != "eager" else 0)
    if family.head_norms:
        attention += (4 + c) * (queries + keys) + 4 * (heads + key_value_heads)
    return stream + attention + 4 * c * text["intermediate_size"] + 8


def _stream_bytes(setup: Setup) -> int:
    """The residual stream has the embedding's type: under autocast that of the weights, sharded that of the factors."""
    return max(setup.weight_bytes, setup.compute_bytes) if setup.sharding == "none" else setup.compute_bytes


def _mask_bytes(config: dict, setup: Setup, layers: int) -> float:
    """
    What keeps documents apart where the kernel does not: [rows, T, T] booleans, which SDPA turns into the factors' type
    for each layer kept; eager attention keeps its scores [rows, heads, T, T] too, in fp32 and in the factors' type.
    """
    if not setup.masked:
        return 0.0
    square, c = setup.rows * setup.max_length**2, setup.compute_bytes
    if setup.attention == "eager":
        return square * (1 + c + layers * attention_sizes(config)[0] * (4 + c % 4))
    return square * (1 + layers * c)


def _kept(config: dict, setup: Setup) -> float:
    """Activations kept until the backward pass: all, or with checkpointing what goes into every layer."""
    layers = text_config(config)["num_hidden_layers"]
    if setup.checkpointing:
        return setup.tokens * layers * _stream_bytes(setup) * text_config(config)["hidden_size"]
    return setup.tokens * layers * layer_activation_bytes(config, setup) + _mask_bytes(config, setup, layers)


def _passing(config: dict, setup: Setup, backward: bool) -> float:
    """What exists while one layer is at work: forward its widest tensors, backward what is recomputed and gradients."""
    text, c = text_config(config), setup.compute_bytes
    if not backward:
        return setup.tokens * c * (3 * text["intermediate_size"] + 4 * text["hidden_size"]) + _mask_bytes(
            config, setup, 1
        )
    again = layer_activation_bytes(config, setup) if setup.checkpointing else 0
    mask = _mask_bytes(config, setup, 1) if setup.checkpointing else 0
    return setup.tokens * (again + 3 * c * text["intermediate_size"]) + mask


def _student_state(student: dict, setup: Setup) -> float:
    """Weights, gradients and both AdamW states: 16 bytes a parameter in fp32, and in ZeRO-3's 2 + 2 + 12."""
    total, trained = count_total(student), setup.trained * count_parameters(student)
    if setup.sharding == "zero3" and setup.compute_bytes == 2:
        return (2 * total + 14 * trained) / setup.shards
    mixed = setup.sharding == "fsdp2" and setup.compute_bytes == 2  # accelerate makes what is trained fp32 then
    width = 4 if mixed else setup.weight_bytes
    return width * (total + 3 * trained) / setup.shards


def _student_gathered(student: dict, setup: Setup) -> float:
    width, trained = setup.compute_bytes, setup.trained * count_parameters(student)
    if setup.sharding == "none":
        copies = width * (count_parameters(student) - end_parameters(student)) if setup.weight_bytes > width else 0
        return copies + (setup.weight_bytes * trained if setup.gpus > 1 else 0)  # DDP's buckets of gradients
    layer, ends = layer_parameters(student), end_parameters(student)
    weights = width * (GATHERED_LAYERS * layer + ends)
    if setup.keeps_whole_gradients:
        return weights + width * trained
    return weights + width * setup.trained * (layer + ends)


def _trl_head_bytes(student: dict, setup: Setup) -> float:
    """
    Of TRL's head in its backward pass: a tile of logits, the head's gradient in fp32 and rounded, and of each token the
    stream, the scored part of it, its gradient in fp32 and rounded, and what the last norm saved.
    """
    text, c, stream = text_config(student), setup.compute_bytes, _stream_bytes(setup)
    tile = min(setup.tokens, TILE[0]) * min(text["vocab_size"], TILE[1]) * (c + 4 * TILE_COPIES[setup.device])
    gradient = (4 + c) * head_parameters(student) if setup.trained > 0 else 0
    return tile + gradient + setup.tokens * (8 + c + 3 * stream) * text["hidden_size"]


def _loss_bytes(student: dict, teacher: dict | None, setup: Setup) -> float:
    """Of the fused loss of `distill/loss.py`."""
    vocabulary, c = text_config(student)["vocab_size"], setup.compute_bytes
    chunk = LOSS_BUFFER_BYTES[setup.device] if setup.chunk_tokens is None else 4 * vocabulary * setup.chunk_tokens
    buffers = LOSS_BUFFERS * min(chunk, 4 * vocabulary * setup.tokens)
    models = [student, student] + ([teacher] if teacher is not None else [])
    hidden = sum(text_config(config)["hidden_size"] for config in models)
    copy = c if setup.device == "cuda" else 4  # a CPU multiplies the heads in fp32
    gradient = (4 + c) * head_parameters(student) if setup.trained > 0 else 0
    heads = sum(head_parameters(config) for config in models[1:])
    return buffers + gradient + copy * heads + setup.tokens * c * hidden


def training_memory(student: dict, teacher: dict | None, setup: Setup) -> Memory:
    """
    Memory of one GPU when it holds most: in the student's backward pass, or in the teacher's forward before it.

    Parts that do not peak at quite the same moment are added: an upper bound, by a few GB. Of TRL's head and the
    layers' backward pass, which comes after it, the larger counts: both are gigabytes on long rows.

    Args:
        student (`dict`): its config.json.
        teacher (`dict`, *optional*): the teacher's, where there is one and it is known.
        setup (`Setup`): how the stage trains.
    """
    gathered, kept = _student_gathered(student, setup), _kept(student, setup)
    passing, frozen = _passing(student, setup, backward=True), 0.0
    loss = _trl_head_bytes(student, setup) if setup.trl_head else _loss_bytes(student, teacher, setup)
    if setup.trl_head:
        passing, loss = (0.0, loss) if loss > passing else (passing, 0.0)
    if teacher is not None and setup.teacher_is_here:
        frozen = setup.teacher_bytes * count_total(teacher) / setup.shards
        theirs = setup.teacher_bytes * (GATHERED_LAYERS * layer_parameters(teacher) + end_parameters(teacher))
        theirs = 0.0 if setup.sharding == "none" else theirs
        forward = _passing(teacher, setup, backward=False)
        if theirs + forward > passing + loss:
            gathered, passing, loss = gathered + theirs, forward, 0.0
    return Memory(_student_state(student, setup), frozen, gathered, kept + passing, loss)


def communicated_bytes(student: dict, teacher: dict | None, setup: Setup) -> float:
    """
    Bytes each GPU receives in one optimizer step: weights gathered for forward, backward and the teacher's forward of
    every batch, and gradients once a step or, synchronised each batch, once a batch.
    """
    parameters, width = count_parameters(student), setup.compute_bytes
    if setup.gpus == 1:
        return 0.0
    if setup.sharding == "none":
        return 2 * setup.weight_bytes * setup.trained * parameters
    reduced = setup.accumulation if setup.sync_each_batch or setup.sharding == "zero3" else 1
    here = teacher is not None and setup.teacher_is_here
    frozen = setup.teacher_bytes * count_parameters(teacher) if here else 0
    batches = setup.accumulation * (2 * width * parameters + frozen)
    return (batches + reduced * width * setup.trained * parameters) * (setup.gpus - 1) / setup.gpus


def prune_memory(parent: dict, child: dict, samples: int, length: int, batch: int) -> tuple[float, float]:
    """
    Bytes on the device and in the host that pruning takes at most, after `hf_cascade/prune/README.md`.

    Args:
        parent (`dict`), child (`dict`): config.json of both.
        samples (`int`): windows of calibration text.
        length (`int`): tokens of a window.
        batch (`int`): windows at once.
    """
    text, heads = text_config(parent), attention_sizes(parent)
    widths = text["hidden_size"] + text_config(child)["hidden_size"] + heads[0] * heads[2]
    layers = max(2.5 * 4 * layer_parameters(parent), 4.0 * head_parameters(parent))
    device = layers + batch * length * 32 * text["intermediate_size"] + 256e6
    return device, 4.0 * samples * length * widths
