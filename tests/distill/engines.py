"""Training on two CPU processes with accelerate's engines, for test_engines.py, which compares it with one process.

    torchrun --nproc_per_node 2 tests/distill/engines.py FOLDER ENGINE...

DDP on CPUs is accelerate's own. Its FSDP2 and DeepSpeed start on GPUs alone; told that these CPUs are some, they run as
they are, over gloo. Of context parallelism torch's attention, which GPUs alone have, is replaced by `split_rows`.
"""

import contextlib
import json
import os
import random
import string
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, experimental
from transformers import TrainerCallback
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hf_cascade.data.documents import Documents
from hf_cascade.data.packing import PackedText
from hf_cascade.distill import packed
from hf_cascade.distill.config import CascadeDistillationConfig
from hf_cascade.distill.trainer import CascadeDistillationTrainer
from hf_cascade.loading import load_model
from tests.data import tiny
from tests.distill import setting

STEPS = 4
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
}
SEQUENCE = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_SP_BACKEND": "deepspeed",
    "PARALLELISM_CONFIG_SP_SIZE": "2",
    "PARALLELISM_CONFIG_SP_ATTN_IMPLEMENTATION": "sdpa",
}
CONTEXT = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_CP_BACKEND": "torch",
    "PARALLELISM_CONFIG_CP_SIZE": "2",
}
ENGINES = {
    "ddp": {},
    "fsdp2": FSDP2,
    "fsdp2-families": FSDP2,
    "context": {**FSDP2, **CONTEXT},
    "zero3": ZERO3,
    "sequence": {**ZERO3, **SEQUENCE},
    "sequence-packed": {**ZERO3, **SEQUENCE},
}
SPLIT = ("context", "sequence", "sequence-packed")  # processes share rows
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}  # DeepSpeed deals heads out to the processes
DEEPSPEED = {  # parameters this small would stay whole
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "zero_allow_untested_optimizer": True,
    "gradient_clipping": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
}


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step."""

    kept = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.kept is None:
            grads = {name: parameter.grad for name, parameter in model.named_parameters()}
            self.kept = {
                name.removeprefix("module."): grad.full_tensor() if isinstance(grad, DTensor) else grad.clone()
                for name, grad in grads.items()
                if grad is not None
            }


class Stop(TrainerCallback):
    """Stops after the second step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            control.should_save = control.should_training_stop = True


class WholeRow(torch.autograd.Function):
    """The parts of all processes, joined along `dim`; torch's own gather gets its gradient wrong over gloo."""

    @staticmethod
    def forward(ctx, part, dim, mesh):
        ctx.dim, ctx.mesh = dim, mesh
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(mesh.size())]
        distributed.all_gather(parts, part.contiguous(), mesh.get_group())
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        distributed.all_reduce(grad, group=ctx.mesh.get_group())
        return grad.chunk(ctx.mesh.size(), ctx.dim)[ctx.mesh.get_local_rank()], None, None


@contextlib.contextmanager
def split_rows(*, mesh, buffers, buffer_seq_dims, no_restore_buffers):
    """`context_parallel`: each process keeps its part of the buffers, and attention is over the whole row."""
    rank, size = mesh.get_local_rank(), mesh.size()
    for buffer, dim in zip(buffers, buffer_seq_dims, strict=True):
        part = buffer.chunk(size, dim)[rank].clone()
        buffer.resize_(part.shape).copy_(part)
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def gathered(module, query, key, value, attention_mask, **kwargs):
        assert attention_mask is None and kwargs["is_causal"], "accelerate's hook is on every layer"
        whole = [WholeRow.apply(part, 2, mesh) for part in (query, key, value)]
        output, weights = attention(module, *whole, None, **kwargs)
        return output.chunk(size, 1)[rank], weights

    ALL_ATTENTION_FUNCTIONS["sdpa"] = gathered
    yield
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention


def dtype(engine: str) -> torch.dtype:
    """DeepSpeed knows no fp64."""
    return torch.float32 if "ACCELERATE_USE_DEEPSPEED" in ENGINES[engine] else torch.float64


def save_models(folder: Path) -> None:
    """The student and the teacher of every engine; for one of them a student with a vision tower and a tied head."""
    for engine in ENGINES:
        kind = {"family": "mistral3", "tie_word_embeddings": True} if engine == "fsdp2-families" else HEADS
        setting.student(dtype=dtype(engine), **kind).save_pretrained(folder / f"{engine}-student")
        setting.teacher(dtype=dtype(engine), **HEADS).save_pretrained(folder / f"{engine}-teacher")


def labelled_rows() -> Dataset:
    """Rows of one document each, with labels from one place or another: what rows split in two must not mix up."""
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 90, (16,), generator=draw).tolist() for _ in range(16)]
    return Dataset.from_list(
        [{"input_ids": ids, "labels": [-100] * (place % 11) + ids[place % 11 :]} for place, ids in enumerate(rows)]
    )


def long_texts() -> Dataset:
    """Documents that each fill two rows of 16 tokens, BOS and EOS with them, so that no row holds two."""
    draw = random.Random(0)
    return Dataset.from_dict({"text": ["".join(draw.choices(string.ascii_lowercase, k=30)) for _ in range(10)]})


def make(folder: Path, engine: str, models: Path, processes: int, **settings):
    """A trainer of two rows a step on `processes`; under sequence parallelism they share each row."""
    options = {"max_steps": STEPS, "save_steps": 2, "per_device_train_batch_size": 2 // processes}
    options |= {"use_cpu": processes == 1 or engine == "ddp", "max_grad_norm": 0.0}
    if dtype(engine) == torch.float32:
        options["optim"] = "sgd"  # AdamW makes much of the last digits of small gradients
    dataset, parts = tiny.packed(16), {}
    if engine in SPLIT:
        options |= {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 1}
    if engine == "sequence-packed":
        packed.check_rows = lambda *args: None  # which would ask for FlashAttention
        dataset = PackedText(Documents(long_texts()), tiny.tokenizer(), 16)
    elif engine in SPLIT:
        dataset = labelled_rows()
        parts = {"data_collator": DataCollatorForLanguageModeling(pad_token_id=0, return_position_ids=True)}
        options["train_sampling_strategy"] = "sequential"
    # First the settings, as in the scripts: models are loaded in the way that the engine asks for.
    config = CascadeDistillationConfig(output_dir=str(folder), **{**setting.COMMON, **options, **settings})
    student, teacher = (load_model(str(models / f"{engine}-{name}")) for name in ("student", "teacher"))
    return CascadeDistillationTrainer(
        student, teacher, config, train_dataset=dataset, processing_class=tiny.tokenizer(), **parts
    )


def facts(trainer) -> dict:
    """What this process saw, for the comparison of the processes."""
    teacher = trainer.teacher.model
    return {
        "type": trainer.accelerator.distributed_type.value,
        "processes": trainer.accelerator.num_processes,
        "student": type(trainer.model_wrapped).__name__,
        "units": sum(isinstance(module, FSDPModule) for module in teacher.modules()),
        "whole": sum(parameter.numel() for parameter in teacher.parameters() if not isinstance(parameter, DTensor)),
        "data_state": trainer.data_state,
        "losses": setting.losses(trainer),
        "kls": [entry["distill/kl"] for entry in trainer.state.log_history if "loss" in entry],
    }


def main(folder: Path, engine: str) -> None:
    """Train straight on, and stopped and resumed; leave weights, gradients, and what each process saw."""
    os.environ.update(ENGINES[engine])
    if engine != "ddp":
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        experimental.context_parallel = split_rows
        PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    if "ACCELERATE_USE_DEEPSPEED" in ENGINES[engine]:
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(folder / "deepspeed.json")
    gradients = Gradients()
    trainer = make(folder / f"{engine}-straight", engine, folder, 2)
    trainer.add_callback(gradients)
    trainer.train()
    trainer.save_model()
    rank = trainer.accelerator.process_index
    (folder / f"{engine}-{rank}.json").write_text(json.dumps(facts(trainer)))
    if rank == 0 and dtype(engine) == torch.float64:
        torch.save(gradients.kept, folder / f"{engine}-gradients.pt")

    if engine not in SPLIT:  # DeepSpeed makes its groups once in a process
        stop_and_resume(folder, engine, rank)
    for name in ENGINES[engine]:
        del os.environ[name]


def stop_and_resume(folder: Path, engine: str, rank: int) -> None:
    """The same once more, with a stop after the second step."""
    settings = {"save_strategy": "steps"}
    stopped = make(folder / f"{engine}-resumed", engine, folder, 2, **settings)
    stopped.add_callback(Stop())
    stopped.train()
    resumed = make(folder / f"{engine}-resumed", engine, folder, 2, **settings)
    resumed.train(resume_from_checkpoint=str(folder / f"{engine}-resumed" / "checkpoint-2"))
    resumed.save_model()
    (folder / f"{engine}-resumed-{rank}.json").write_text(json.dumps(facts(resumed)))


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        main(Path(sys.argv[1]), wanted)
