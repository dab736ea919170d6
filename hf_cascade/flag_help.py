"""`hf-cascade WORD --help`, and complaints about flags that do not exist: from source, so neither waits for torch."""

import difflib
import shutil
import textwrap
from collections.abc import Iterator

from hf_cascade import fields
from hf_cascade.fields import NEEDED, Field

HELP = ("-h", "--help")
COLUMN = 34  # where explanations begin
READ_BY_PARSERS = ("config", "help")  # flags that are no fields
TITLES = {
    "PruneConfig": "shape of the child, and method",
    "PruneArguments": "calibration text, computing, and search of a shape by size",
    "CascadeDistillationConfig": "teacher and loss",
    "CascadeSFTConfig": "length of the stage, vision tower",
    "PretrainingArguments": "model that is started at random",
    "TextArguments": "text that the stage reads",
    "ContextArguments": "window",
    "SFTArguments": "conversations that are learnt from",
    "PairwiseArguments": "question about two responses",
    "CascadeODPOConfig": "Online DPO",
    "CascadeGRPOConfig": "GRPO",
    "OnlineConfig": "loops, tools and limits",
    "OnlineArguments": "rewards and tools",
    "ODPOArguments": "who judges",
    "GRPOArguments": "prompts, rewards and judges",
    "DifficultyArguments": "prompts, who answers, and which stay",
    "EvaluateArguments": "models, held-out text, lm-eval tasks",
    "SuiteArguments": "suites of benchmarks",
    "AnswerArguments": "answers to prompts: win-rates and rewards",
    "Fp8Arguments": "calibration text and computing",
    "PublishArguments": "what, where to, on what terms",
}
LIBRARIES = "of TRL and transformers"
# those of the libraries' hundred or more that a stage is most likely to change
OFTEN = (
    "model_name_or_path output_dir datasets dataset_name dataset_text_field max_length num_train_epochs max_steps "
    "per_device_train_batch_size gradient_accumulation_steps learning_rate lr_scheduler_type lr_scheduler_kwargs "
    "warmup_steps bf16 gradient_checkpointing attn_implementation use_peft lora_r num_generations "
    "max_completion_length use_vllm vllm_mode logging_steps save_steps eval_strategy report_to seed"
).split()
TYPES = {"list": "A B ...", "dict": "JSON", "int": "INT", "float": "NUMBER", "bool": "true|false"}
MORE = {
    "prune": "hf-cascade prune --model Qwen/Qwen3-1.7B --output_dir child --calibration text.jsonl "
    "--target_parameters 50%\nMore: hf_cascade/prune/README.md",
    "pretrain": "hf-cascade pretrain --config recipes/tiny/parent_short.yaml --output_dir OUT",
    "distill": "hf-cascade distill --config recipes/tiny/short.yaml --model_name_or_path CHILD "
    "--teacher_model_name_or_path PARENT --output_dir OUT\nOn several GPUs: accelerate launch trainers/distill.py, "
    "with the same flags.\nMore: trainers/README.md, hf_cascade/distill/README.md",
    "sft": "hf-cascade sft --config sft.yaml --model_name_or_path CHILD --teacher_model_name_or_path TEACHER "
    "--output_dir OUT\nOn several GPUs: accelerate launch trainers/sft.py, with the same flags.\nMore: "
    "trainers/README.md",
    "pwrm": "hf-cascade pwrm --config pwrm.yaml --model_name_or_path SFT --output_dir PWRM\nMore: "
    "hf_cascade/rewards/README.md",
    "odpo": "hf-cascade odpo --config odpo.yaml --model_name_or_path SFT --reward_model PWRM --output_dir OUT\nMore: "
    "hf_cascade/odpo/README.md",
    "difficulty": "hf-cascade difficulty --model SFT --prompts maths.jsonl --reward maths_reward --output_dir "
    "problems\nMore: hf_cascade/grpo/README.md",
    "grpo": "hf-cascade grpo --config grpo.yaml --model_name_or_path SFT --prompts_from problems --output_dir OUT\n"
    "More: hf_cascade/grpo/README.md, hf_cascade/rewards/README.md",
    "evaluate": "hf-cascade evaluate --model CHILD --teacher PARENT --dataset heldout.jsonl --suite base --output_dir "
    "report\nhf-cascade evaluate --conformance proves the scorers of all tasks, without a model; its flags: "
    "hf-cascade evaluate --conformance --help\nMore: evals/README.md",
    "fp8": "hf-cascade fp8 --model DIR --output_dir DIR-fp8 --calibration chats.jsonl.gz --calibration_field messages",
    "publish": "hf-cascade publish --model DIR --repo_id ORG/NAME --license apache-2.0 --dry_run\n"
    "hf-cascade publish --family recipes/tiny/publish.yaml --namespace ORG\nMore: hf_cascade/publish/README.md",
}


def asked(argv: list[str]) -> bool:
    """Whether a word's arguments ask for its help."""
    return any(word in HELP for word in _before_dashes(argv))


def text(word: str, says: str, everything: bool = False) -> str:
    """
    The help of a word whose flags are dataclasses.

    Args:
        word (`str`): a key of `fields.DATACLASSES` or `fields.COMMANDS`.
        says (`str`): what the word does.
        everything (`bool`): also the libraries' flags that are seldom changed.
    """
    known = fields.flags(word)
    needed = [flag for flag in known.values() if flag.default == NEEDED]
    names = " ".join(f"--{flag.name} {_type(flag)}" for flag in needed)
    lines = [
        f"hf-cascade {word}: {says}",
        "",
        " ".join(["usage: hf-cascade", word, *[names] * bool(names), "[FLAG ...]"]),
    ]
    lines += [f"       hf-cascade {word} --config FILE [FLAG ...]     FILE is YAML; flags given here win over its own"]
    lines += ["Defaults stand in [brackets]."]
    left_out = 0
    for title, group in _groups(known):
        shown = [flag for flag in group if everything or title != LIBRARIES or flag.name in OFTEN]
        left_out += len(group) - len(shown)
        lines += ["", title, *(line for flag in shown for line in _explained(flag))]
    if left_out:
        lines += ["", f"{left_out} more flags of TRL and transformers: hf-cascade {word} --help all"]
    return "\n".join([*lines, "", MORE[word]])


def check(word: str, argv: list[str]) -> None:
    """
    Refuse flags that a word does not have, before anything is loaded.

    Raises:
        ValueError: names them, and what may have been meant; or the flags that are needed and not given.
    """
    known = fields.flags(word)
    negated = [f"no_{flag.name}" for flag in known.values() if flag.default == "true"]
    allowed = [*known, *READ_BY_PARSERS, *negated]
    given = [part[2:].partition("=")[0] for part in _before_dashes(argv) if part.startswith("--")]
    given = [name.replace("-", "_") for name in given if " " not in name]  # with one, it is a value to argparse
    help = f"`hf-cascade {word} --help` explains all"
    for name in given:
        if not any(flag.startswith(name) for flag in allowed):  # argparse takes the beginning of a flag for it
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean --{close[0]}?" if close else ""
            raise ValueError(f"{word} has no flag --{name}{meant} ({help})")
    needed = [flag.name for flag in known.values() if flag.default == NEEDED]
    lacks = [f"--{name}" for name in needed if not any(name.startswith(part) for part in given)]
    if lacks and "config" not in given:
        raise ValueError(f"{word} needs {' and '.join(lacks)} ({help})")


def _before_dashes(argv: list[str]) -> list[str]:
    return argv[: argv.index("--")] if "--" in argv else argv


def _groups(known: dict[str, Field]) -> Iterator[tuple[str, list[Field]]]:
    """Flags by title: needed ones, the word's own, the libraries'."""
    own = [flag for flag in known.values() if flag.owner.startswith("hf_cascade.") and flag.default != NEEDED]
    needed = [flag for flag in known.values() if flag.default == NEEDED]
    if needed:
        yield "needed", needed
    for owner in sorted({flag.owner for flag in own}, key=lambda owner: list(TITLES).index(owner.rpartition(".")[2])):
        yield TITLES[owner.rpartition(".")[2]], [flag for flag in own if flag.owner == owner]
    rest = [flag for flag in known.values() if not flag.owner.startswith("hf_cascade.")]
    if rest:
        yield LIBRARIES, rest


def _explained(flag: Field) -> list[str]:
    """A flag's name, type, meaning, values and default, in lines."""
    says = " ".join(flag.help.replace("%%", "%").split())
    if not flag.owner.startswith("hf_cascade."):
        says = says.partition(". ")[0].rstrip(".") + "."
    if flag.choices and flag.annotation != "bool":
        says += f" One of {', '.join(map(str, flag.choices))}."
    if flag.default and flag.default != NEEDED:
        says += f" [{flag.default}]"
    head = f"  --{flag.name} {_type(flag)}"
    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120) - COLUMN)
    said = textwrap.wrap(says, width, break_long_words=False, break_on_hyphens=False) or [""]
    if len(head) + 2 > COLUMN:
        return [head, *(" " * COLUMN + line for line in said)]
    return [f"{head:<{COLUMN}}{said[0]}", *(" " * COLUMN + line for line in said[1:])]


def _type(flag: Field) -> str:
    if flag.choices and "list" not in flag.annotation:
        return "NAME"
    return next((label for kind, label in TYPES.items() if kind in flag.annotation), "TEXT")
