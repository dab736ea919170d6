"""What to prune to, and how: the target shape and the choice at each step of the paper's Algorithm 2."""

from dataclasses import dataclass, field

# What each `method` means, piece by piece. `paper`: the listing of Algorithm 2; `compensated`: ours, chosen by measured
# divergence.
METHODS = {
    "paper": {
        "layer_score": "ratio",
        "hidden_basis": "stream",
        "norm_factor": True,
        "ffn_score": "mean_abs",
        "compensation": "none",
        "tie_merge": "average",
        "balance": False,
    },
    "compensated": {
        "layer_score": "loss_drop",
        "hidden_basis": "fisher",
        "norm_factor": True,
        "ffn_score": "obs",
        "compensation": "read_write",
        "tie_merge": "least_squares",
        "balance": True,
    },
}
CHOICES = {
    "layer_score": ("ratio", "cosine", "loss_drop"),
    "hidden_basis": ("stream", "normed", "fisher", "channels", "magnitude"),
    "norm_factor": (True, False),
    "ffn_score": ("mean_abs", "minitron", "output", "obs", "wanda", "magnitude"),
    "compensation": ("none", "write", "read_write"),
    "tie_merge": ("average", "embedding", "head", "least_squares"),
    "balance": (True, False),
}


@dataclass
class PruneConfig:
    """
    Target shape and method of [`prune_model`].

    Args:
        num_hidden_layers (`int`, *optional*): decoder layers to keep. Unset, the parent's.
        hidden_size (`int`, *optional*): width of the residual stream. Unset, the parent's.
        intermediate_size (`int`, *optional*): width of every FFN. Unset, the parent's.
        tie_word_embeddings (`bool`, *optional*): whether head and embedding are one matrix. Unset, as the parent.
        rope_theta (`float`, *optional*): RoPE base written into the child's config (the released children change it
            between 14B and 8B). Unset, the parent's.
        method (`str`, *optional*, defaults to `"compensated"`): `"paper"` is Algorithm 2 as printed; `"compensated"`
            re-fits every kept weight by least squares on the calibration text (ours). It sets the seven pieces below
            that are left unset.
        layer_score (`str`, *optional*): which layers stay. `"ratio"`: highest mean of |output| / |input| (the paper's
            listing). `"cosine"`: highest mean of 1 - cos(input, output) (ShortGPT, Minitron). `"loss_drop"`: highest
            rise of the loss without the layer.
        hidden_basis (`str`, *optional*): which directions of the stream stay. One PCA over the norms: `"stream"` of
            their inputs (the listing), `"normed"` of their outputs without the gain; `"fisher"` weighs these by the
            loss's gradient (ours). Or channels: `"channels"` by their activations (Minitron), `"magnitude"` by weights.
        norm_factor (`bool`, *optional*): a narrower stream's norms multiply by sqrt(d_old / d_new), which makes the
            rotation exact. The paper's listing does not say; `False` is the listing to the letter.
        ffn_score (`str`, *optional*): which FFN columns stay. `"mean_abs"`: mean |silu(W1 x) * W3 x| (the paper).
            `"output"`: root mean square of the same times the norm of the column of W2 it drives. `"obs"`: the loss
            in the layer's output that the other columns cannot make up for (ours). Also `"minitron"`, `"wanda"` and
            `"magnitude"`; see `hf_cascade.prune.scores`.
        compensation (`str`, *optional*): `"none"` (the paper); `"write"` re-fits o_proj and down_proj to the parent's
            stream; `"read_write"` also what every norm's readers see, where layers or directions of the stream go.
        tie_merge (`str`, *optional*): how an untied parent's two matrices become one: `"average"`, `"embedding"` or
            `"head"` alone, or the row-wise `"least_squares"` compromise between both errors.
        balance (`bool`, *optional*): rescale pairs of layers to equal norms afterwards: the same outputs, and weights
            that an optimizer can move.
        ridge (`float`, *optional*, defaults to `1.0`): how strongly every least-squares fit is pulled to the
            uncompensated weight: as by so many tokens a column, so that short text changes less than long. Ours.
        projector (`str`, *optional*, defaults to `"keep"`): the vision projector is pruned with the model, or with
            `"reinit"` discarded and started anew (the paper's way).
        seed (`int`, *optional*, defaults to `0`): of a new projector's weights.
    """

    num_hidden_layers: int | None = field(default=None, metadata={"help": "Decoder layers to keep. Unset: all."})
    hidden_size: int | None = field(default=None, metadata={"help": "Width of the stream. Unset: the parent's."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Width of the FFNs. Unset: the parent's."})
    tie_word_embeddings: bool | None = field(
        default=None, metadata={"help": "Make head and embedding one matrix. Unset: as the parent."}
    )
    rope_theta: float | None = field(default=None, metadata={"help": "RoPE base of the child. Unset: the parent's."})
    method: str = field(
        default="compensated",
        metadata={
            "help": "Algorithm 2, or also every kept weight re-fitted. Sets each step below that is left unset.",
            "choices": ["paper", "compensated"],
        },
    )
    layer_score: str | None = field(
        default=None,
        metadata={"help": "What layers are kept by. Unset: the method's.", "choices": ["ratio", "cosine", "loss_drop"]},
    )
    hidden_basis: str | None = field(
        default=None,
        metadata={
            "help": "Which directions of the stream are kept. Unset: the method's.",
            "choices": ["stream", "normed", "fisher", "channels", "magnitude"],
        },
    )
    norm_factor: bool | None = field(
        default=None, metadata={"help": "Norms of a narrower stream times sqrt(d_old / d_new). Unset: true."}
    )
    ffn_score: str | None = field(
        default=None,
        metadata={
            "help": "What FFN columns are kept by. Unset: the method's.",
            "choices": ["mean_abs", "minitron", "output", "obs", "wanda", "magnitude"],
        },
    )
    compensation: str | None = field(
        default=None,
        metadata={
            "help": "Which weights are re-fitted. Unset: the method's.",
            "choices": ["none", "write", "read_write"],
        },
    )
    tie_merge: str | None = field(
        default=None,
        metadata={
            "help": "How head and embedding become one matrix. Unset: the method's.",
            "choices": ["average", "embedding", "head", "least_squares"],
        },
    )
    balance: bool | None = field(
        default=None,
        metadata={"help": "Rescale pairs of matrices: same outputs, easier to train. Unset: the method's."},
    )
    ridge: float = field(
        default=1.0, metadata={"help": "Pull of the least-squares fits to the weights before: as by so many tokens."}
    )
    projector: str = field(
        default="keep",
        metadata={
            "help": "Prune the vision projector with the model, or start it anew.",
            "choices": ["keep", "reinit"],
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of a new projector."})

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: allowed are {sorted(METHODS)}")
        for piece, choices in CHOICES.items():
            if getattr(self, piece) is None:
                setattr(self, piece, METHODS[self.method][piece])
            if getattr(self, piece) not in choices:
                raise ValueError(f"{piece}={getattr(self, piece)!r}: allowed are {list(choices)}")
        if self.projector not in ("keep", "reinit"):
            raise ValueError(f"projector={self.projector!r}: allowed are ['keep', 'reinit']")
        if not self.ridge > 0:
            raise ValueError(f"ridge={self.ridge}: it must be above 0 (1.0 was best or nearly so where measured)")


@dataclass
class PruneArguments:
    """
    Parameters of `hf-cascade prune` beside [`PruneConfig`]: the parent, the child's folder and the calibration text.

    Args:
        model (`str`): the parent's folder or Hub id.
        output_dir (`str`): folder for the child; new or empty.
        calibration (`str`, *optional*): text to calibrate on: a `.txt`, `.jsonl`, `.json`, `.parquet` file (also
            `.gz`), or a dataset's Hub id. Not needed when no dimension changes.
        calibration_split (`str`, *optional*, defaults to `"train"`): split of the dataset.
        calibration_field (`str`, *optional*, defaults to `"text"`): the text column.
        calibration_samples (`int`, *optional*, defaults to `64`): windows of text at most. Ours: paper silent
            (Minitron used 1,024).
        calibration_length (`int`, *optional*): tokens of a window. Unset, 1,024, or the model's window or the text's
            length where that is less. Ours: paper silent.
        calibration_images (`str`, *optional*): image-text samples of a vision-language model to calibrate on besides: a
            `.jsonl` or `.parquet` file or a dataset's Hub id with `images` and `messages` (or `text`); see
            `hf_cascade.data.image_text`. As many as `calibration_samples` at most.
        heldout (`str`, *optional*): text on which the report's divergences are measured, 16 windows of it; as
            `calibration`. Unset, windows from all over the calibration text, which are then not fitted on.
        batch_size (`int`, *optional*, defaults to `8`): windows at once.
        dtype (`str`, *optional*, defaults to `"auto"`): type of the child's weights; `auto` is the parent's.
        device (`str`, *optional*, defaults to `"auto"`): where to compute: `cpu`, `cuda`, `cuda:1`; `auto` is a GPU
            where there is one.
        max_shard_size (`str`, *optional*, defaults to `"5GB"`): of one file of weights.
        target_parameters (`str`, *optional*): search the best shape of this size instead of naming it: `3.4B`, `350M`,
            a number, or a share of the parent as `40%` or `0.4`. Dimensions that are named stay. All parameters count,
            a vision tower's too.
        target_memory (`str`, *optional*): the same by the size of the weights, as `7GB` or `40%`.
        multiple_of (`int`, *optional*): what a searched hidden size and FFN are multiples of. Unset, 128, which fast
            kernels want, or less for parents narrower than 1,024.
        search_only (`bool`, *optional*, defaults to `False`): show the shapes and stop.
    """

    model: str = field(metadata={"help": "The parent: folder or Hub id."})
    output_dir: str = field(metadata={"help": "Folder for the child; new or empty."})
    calibration: str | None = field(
        default=None, metadata={"help": "Calibration text: .txt, .jsonl, .json, .parquet (also .gz) or a dataset id."}
    )
    calibration_split: str = field(default="train", metadata={"help": "Split of the calibration dataset."})
    calibration_field: str = field(default="text", metadata={"help": "Text column of the calibration dataset."})
    calibration_samples: int = field(default=64, metadata={"help": "Windows of calibration text at most."})
    calibration_length: int | None = field(
        default=None, metadata={"help": "Tokens of a window. Unset: 1,024, or what model and text allow."}
    )
    calibration_images: str | None = field(
        default=None, metadata={"help": "Image-text samples of a vision-language model to calibrate on besides."}
    )
    heldout: str | None = field(
        default=None, metadata={"help": "Text the divergences are measured on. Unset: calibration text left aside."}
    )
    batch_size: int = field(default=8, metadata={"help": "Windows computed at once."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Type of the child's weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    device: str = field(default="auto", metadata={"help": "Where to compute: auto, cpu, cuda, cuda:1."})
    max_shard_size: str = field(default="5GB", metadata={"help": "Size of one file of weights at most."})
    target_parameters: str | None = field(
        default=None, metadata={"help": "Search the best shape of this size: 3.4B, 350M, 40%% of the parent."}
    )
    target_memory: str | None = field(default=None, metadata={"help": "The same by the weights' size: 7GB, 40%%."})
    multiple_of: int | None = field(
        default=None, metadata={"help": "Searched sizes are multiples of this. Unset: 128, less for small parents."}
    )
    search_only: bool = field(default=False, metadata={"help": "Show the shapes that the search found, and stop."})
