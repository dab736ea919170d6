"""`hf-cascade plan`: what a recipe makes and what each stage takes on a machine, with its basis; tables or JSON."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table

from hf_cascade import manifest
from hf_cascade.display import make_console
from hf_cascade.estimate import NO_MACHINE, PRUNE_PASSES, Estimate, Record, estimate, product_types
from hf_cascade.machines import CPU, CUSTOM, find_machine
from hf_cascade.memory import SHARDINGS
from hf_cascade.plan import PlannedStage, make_plan, make_table, short_number, table
from hf_cascade.recipe import Recipe, load_recipe
from hf_cascade.run import default_name, parse_overrides
from hf_cascade.shape import count_parameters, count_total
from hf_cascade.stage_setup import MFU, ONLINE, Options, make_setup, setting
from hf_cascade.writing import SHORT

RESULTS = "results/results.json"  # beside a recipe: what it made when its authors ran it
COST_COLUMNS = ("stage", "batch", "steps", "FLOPs", "teacher", "tokens/s", "time", "GPU-h")
MEMORY_COLUMNS = ("stage", "student", "teacher", "gathered", "activations", "loss", "total", "fit")
WRITING_COLUMNS = ("stage", "written", "writing", "passes", "judging", "short", "refilled")
SHARED_ROWS = "by ZeRO-3 where GPUs share rows (recipes/accelerate/sp_zero3.yaml)"
ONLINE_BASIS = {
    "online": "odpo and grpo: FLOPs: the policy forward while it writes, then forward and backward, its head again. "
    "Rows are padded to the longest written with them; logits are never whole. Memory of teacher: a reward model or "
    "judge in the process, whole on each GPU; vLLM on the same card unless it sleeps. loss: 0 where layers take more "
    "after it. writing: memory while responses are written, as activations.",
    "odpo": "FLOPs of teacher: the reference forward, and the reward model on both whole responses of a pair in both "
    "orders: more than it reads where thinking is taken out, or its own max_length cuts. loss_form: weight is one more "
    "forward of the policy. Memory of teacher: the reference too, sharded as the policy.",
    "grpo": "FLOPs: another forward for log-probabilities beforehand where responses are vLLM's or older than the "
    "policy. No reference; rewards are not counted, nor groups that replace others.",
}
NARROW = 110  # columns of a terminal below which the first table writes 13.5B for 13,506,073,600


def main(arguments) -> int:
    """
    `hf-cascade plan`.

    Args:
        arguments (`argparse.Namespace`): `recipe`, `set`, `machine`, `gpus`, `tflops`, `memory`, `mfu`, `sharding`,
            `sequence_parallel`, `output_dir`, `json`.

    Raises:
        ValueError, FileNotFoundError: bad input.
    """
    recipe = load_recipe(arguments.recipe, parse_overrides(arguments.set))
    options = make_options(arguments, recipe)
    planned = make_plan(recipe)
    output_dir = Path(arguments.output_dir or Path("runs") / default_name(recipe.path))
    known = find_records(recipe, planned, output_dir) if options.machine.card.name == CPU else {}
    estimates = [estimate(part, options, known.get(part.stage.name)) for part in planned]
    if arguments.json:
        print(json.dumps(as_dict(recipe, planned, estimates, options), indent=1))
        return 0
    console = make_console()
    console.print(f"{recipe.path}", style="bold", soft_wrap=True)
    console.print(table(planned, short=console.width < NARROW))
    console.print(f"On {_machine_words(options)}:", style="bold", soft_wrap=True)
    console.print(cost_table(estimates, options))
    if any(part.times for part in estimates):
        console.print("Time of stages that write responses (writing, below):", style="bold")
        console.print(writing_table(estimates))
    if any(part.memory for part in estimates):
        console.print(f"GB on each {'process' if options.machine.card.name == CPU else 'GPU'}:", style="bold")
        console.print(memory_table(estimates, options))
    for title, lines in (
        ("Does not fit:", misfits(estimates, options)),
        ("Basis:", basis(planned, estimates, options)),
    ):
        if lines:
            console.print(title, style="bold")
            console.print(_two_columns(lines))
    return 0


def _two_columns(lines: list[tuple[str, str]]) -> Table:
    """What each line is about, and the line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for line in lines:
        grid.add_row(*line)
    return grid


def make_options(arguments, recipe: Recipe) -> Options:
    """
    Options of the command line, checked.

    Raises:
        ValueError: an unknown machine, sharding or stage, or a number out of range.
    """
    if not 0 < arguments.mfu <= 1:
        raise ValueError(f"--mfu {arguments.mfu}: a share of the peak, above 0 and at most 1 (0.4 is usual)")
    if arguments.sharding not in (None, *SHARDINGS):
        raise ValueError(f"--sharding {arguments.sharding}: allowed are {', '.join(SHARDINGS)}")
    machine = find_machine(arguments.machine, arguments.gpus, arguments.tflops, arguments.memory)
    names, shared = [stage.name for stage in recipe.stages], {}
    for text in arguments.sequence_parallel:
        stage, equals, count = text.rpartition("=")
        if not count.isdecimal() or (equals and stage not in names):
            raise ValueError(f"--sequence_parallel {text}: write N, or STAGE=N with a stage of {', '.join(names)}")
        shared[stage] = int(count)
    return Options(machine, arguments.mfu, arguments.sharding, shared)


def find_records(recipe: Recipe, planned: list[PlannedStage], output_dir: Path) -> dict[str, Record]:
    """
    Seconds that stages took on a CPU: those of a run in `output_dir` with these very settings, else those that the
    recipe's authors left beside it for models of the same size.
    """
    file = recipe.path.parent / RESULTS
    rows = json.loads(file.read_text(encoding="utf-8"))["models"] if file.is_file() else []
    found = {}
    for row in rows:
        found[row["name"], row["num_parameters"]] = Record(row["seconds"], row["tokens"], str(file))
    records = {}
    for part in planned:
        folder = output_dir / part.stage.name
        if manifest.is_finished(folder):
            made = manifest.read(folder)
            same = made.get("fingerprint") == part.stage.fingerprint and not made["hardware"]["accelerator"]
            if same and "seconds" in made["metrics"]:
                tokens = (made["data"] or {}).get("tokens", 0)
                records[part.stage.name] = Record(
                    made["metrics"]["seconds"], tokens, str(output_dir / "*" / manifest.FILE)
                )
                continue
        if part.config is not None and (part.stage.name, count_total(part.config)) in found:
            records[part.stage.name] = found[part.stage.name, count_total(part.config)]
    return records


def cost_table(estimates: list[Estimate], options: Options) -> Table:
    """FLOPs and time of every stage, and their sums."""
    rows = []
    for part in estimates:
        share = rate = ""
        if part.per_token is not None and part.per_token.teacher:
            share = f"{part.per_token.teacher / part.per_token.executed:.0%}"
        if part.seconds and part.tokens:
            rate = f"{part.tokens / part.seconds:,.0f}"
        hours = "" if part.seconds is None else _number(part.gpus * part.seconds / 3600)
        batch = "" if part.batch_tokens is None else short_number(part.batch_tokens)
        steps = "" if part.steps is None else f"{part.steps:,}"
        flops = "" if part.flops is None else f"{part.flops:.1e}".replace("e+", "e")
        rows.append([part.name, batch, steps, flops, share, rate, _time(part.seconds), hours])
    timed = [part for part in estimates if part.seconds is not None]
    if timed:
        flops = f"{sum(part.flops or 0 for part in estimates):.1e}".replace("e+", "e")
        spent = sum(part.gpus * part.seconds for part in timed) / 3600
        rows.append(["total", "", "", flops, "", "", _time(sum(part.seconds for part in timed)), _number(spent)])
    shown = len(COST_COLUMNS) - (options.machine.card.name == CPU)  # no GPU-hours on a CPU
    return make_table(COST_COLUMNS[:shown], [row[:shown] for row in rows], right=COST_COLUMNS[1:])


def writing_table(estimates: list[Estimate]) -> Table:
    """What the time of stages that write their responses is made of, and between what it may lie."""
    rows = []
    for part in (part for part in estimates if part.times is not None):
        times = part.times
        parts = [times.writing, times.passes, times.judging or None, times.short, times.refilled]
        rows.append([part.name, short_number(part.written), *map(_time, parts)])
    kept = [number for number in range(len(WRITING_COLUMNS)) if any(row[number] for row in rows)]
    columns = tuple(WRITING_COLUMNS[number] for number in kept)
    return make_table(columns, [[row[number] for number in kept] for row in rows], right=columns[1:])


def memory_table(estimates: list[Estimate], options: Options) -> Table:
    """Memory of one GPU by what holds it, and whether that fits."""
    rows = []
    for part in estimates:
        if part.device_bytes is None:
            continue
        phases = {part.name: part.memory, "  writing": part.writing_memory}
        for name, held in phases.items():
            if held is None and name != part.name:
                continue
            parts, total = [""] * 5, part.device_bytes
            if held is not None:
                parts = [held.student, held.teacher, held.gathered, held.activations, held.loss]
                parts = [_gigabytes(size) for size in parts]
                total = part.device_bytes if part.writing_memory is None else held.total
            fits = {None: "", True: "yes", False: "no"}[replace(part, device_bytes=total).fits(options.machine)]
            rows.append([name, *parts, _gigabytes(total), fits])
    shown = len(MEMORY_COLUMNS) - (options.machine.memory_bytes is None)
    return make_table(MEMORY_COLUMNS[:shown], [row[:shown] for row in rows], right=MEMORY_COLUMNS[1:-1])


def misfits(estimates: list[Estimate], options: Options) -> list[tuple[str, str]]:
    """Stages that do not fit, and what to change."""
    lines = []
    for part in estimates:
        if part.fits(options.machine) is False:
            size, room = _gigabytes(part.device_bytes), _gigabytes(options.machine.memory_bytes)
            words = "enough would be" if part.advice else "only a larger card would be enough"
            lines.append((part.name, f"{size} of {room} GB; {words}"))
            lines += [("", f"- {change}") for change in part.advice]
    return lines


def basis(planned: list[PlannedStage], estimates: list[Estimate], options: Options) -> list[tuple[str, str]]:
    """What each figure rests on, and why some are not there."""
    trained = [
        (part, cost, make_setup(part, options)) for part, cost in zip(planned, estimates, strict=True) if cost.memory
    ]
    lines = [
        *_flops_basis(trained, estimates, options),
        *_post_training_basis(estimates),
        *_writing_basis(trained, options),
        *_time_basis(trained, estimates, options),
        *_memory_basis(trained),
    ]
    hosts = [f"{_gigabytes(cost.host_bytes)} for {cost.name}" for cost in estimates if (cost.host_bytes or 0) >= 1e9]
    if hosts:
        lines.append(("host", f"GB that pruning's streams take there, at most: {', '.join(hosts)}."))
    reasons = dict.fromkeys(part.missing for part in estimates if part.missing)
    for reason in reasons:
        names = ", ".join(part.name for part in estimates if part.missing == reason)
        lines.append(("time", f"{reason}.") if reason == NO_MACHINE else ("not known", f"{names}: {reason}."))
    return lines


def _flops_basis(trained: list, estimates: list[Estimate], options: Options) -> list[tuple[str, str]]:
    lines = []
    if trained:
        masked = {setup.masked for *_, setup in trained}
        attended = "the whole row, which SDPA multiplies and masks" if True in masked else "all before them in the row"
        if len(masked) == 2:
            attended = "all before them in the row under FlashAttention, else to the whole row, which SDPA masks"
        lines.append(
            (
                "FLOPs",
                "Matrix products: the student forward and backward, layers again where gradient checkpointing "
                f"recomputes them, the teacher forward. Tokens attend to {attended}. Text "
                "only, no vision tower. batch: tokens of an optimizer step. teacher: its share.",
            )
        )
        if any(part.stage.settings.get("use_peft") for part, *_ in trained):
            lines.append(("LoRA", "Its own matrices, usually under 1% of the weights, are not counted."))
    if any(cost.run == "prune" and cost.flops for cost in estimates):
        lines.append(
            (
                "prune",
                f"{PRUNE_PASSES['compensated']} forward passes of the parent over the calibration text, "
                f"{PRUNE_PASSES['paper']} with method: paper (the most in benchmarks/results/prune_cpu.md), in fp32"
                + ("." if options.machine.card.name == CPU else ", on one GPU."),
            )
        )
    return lines


def _post_training_basis(estimates: list[Estimate]) -> list[tuple[str, str]]:
    """What stands for lengths that are not known, and what Online DPO and GRPO multiply and hold."""
    lines = []
    for counted in dict.fromkeys(cost.counted for cost in estimates if cost.counted):
        names = ", ".join(cost.name for cost in estimates if cost.counted == counted)
        lines.append(("rows", f"{names}: {counted}."))
    runs = {cost.run for cost in estimates if cost.memory}
    runs |= {"online"} if runs & set(ONLINE) else set()
    return lines + [(run, words) for run, words in ONLINE_BASIS.items() if run in runs]


def _writing_basis(trained: list, options: Options) -> list[tuple[str, str]]:
    """What the time of stages that write their responses supposes."""
    timed = [(part, cost, setup) for part, cost, setup in trained if cost.times is not None]
    if not timed:
        return []
    card = options.machine.card
    words = (
        "time of odpo and grpo: an upper bound in lengths, every response at its longest, no group replaced; a lower "
        "one in what writes, which reads weights, and earlier keys and values, at the full "
        f"{card.memory_tb_per_second:g} TB/s of {card.name}. Written together: with vLLM as many whole rows as fit "
        "beside the policy, with transformers a whole generation batch"
    )
    if any(not setting(part.stage, "use_vllm") and setup.sharding == "fsdp2" for part, _, setup in timed):
        words += ", for each token of which FSDP2 gathers the weights again"
    words += ". passes: training, log-probabilities beforehand, the reference."
    words += " judging: the reward model." if any(cost.times.judging for _, cost, _ in timed) else ""
    words += f" short: all of it with responses {SHORT:.0%} as long, in rows padded as before."
    if any(cost.times.refilled for _, cost, _ in timed):
        words += " refilled: all of it with every group replaced max_refill_rounds times."
    return [("writing", f"{words} Rewards and judges elsewhere take no time. Not measured.")]


def _time_basis(trained: list, estimates: list[Estimate], options: Options) -> list[tuple[str, str]]:
    machine, lines = options.machine, []
    records = sorted({cost.record for cost in estimates if cost.record})
    if records:
        lines.append(("time", f"Seconds recorded in {', '.join(records)}, in proportion to the tokens."))
    if any(cost.bound == "arithmetic" and cost.seconds is not None for cost in estimates):
        kinds = {kind for part, cost, _ in trained if cost.seconds is not None for kind in product_types(part)[::2]}
        kinds |= {"float32" for cost in estimates if cost.run == "prune" and cost.seconds is not None}
        rates = ", ".join(f"{machine.peak_flops(kind) / 1e12:,.0f} TFLOP/s in {kind}" for kind in sorted(kinds))
        why = "as you set it" if options.mfu != MFU else "assumed: Llama 3 had 0.38 to 0.43 (arXiv 2407.21783, table 4)"
        lines.append(
            (
                "time",
                f"FLOPs / (GPUs x peak x mfu). Peak: {rates}, dense ({machine.card.source}). mfu: {options.mfu:g}, "
                f"{why}. Reading data, evaluation and checkpoints are not in it. Nothing was measured on this machine.",
            )
        )
    for cost in estimates:
        if cost.bound == "links":
            lines.append((cost.name, "time of the exchanges between GPUs, which take longer than the arithmetic"))
    return lines


def _memory_basis(trained: list) -> list[tuple[str, str]]:
    if not trained:
        return []
    setups = [setup for *_, setup in trained]
    whole = "single_gpu.yaml" if setups[0].gpus == 1 else "ddp.yaml"
    words = {
        "none": f"none, the whole student and teacher on each (recipes/accelerate/{whole})",
        "fsdp2": "student and teacher by FSDP2 (recipes/accelerate/fsdp2.yaml)",
        "zero3": "student and teacher by ZeRO-3 (recipes/accelerate/zero3.yaml)",
    }
    kinds = dict.fromkeys((setup.sharding, setup.sequence_parallel > 1) for setup in setups)
    sharding = "; ".join(SHARED_ROWS if shares_rows else words[kind] for kind, shares_rows in kinds)
    lines = [
        (
            "memory",
            "10^9 bytes. student: weights, gradients, AdamW's states. gathered: of the others' shares, or in a second "
            f"type. Sharding: {sharding}. An upper bound by a few GB, worked out from code and not measured.",
        )
    ]
    if any(setup.keeps_whole_gradients for setup in setups):
        lines.append(
            (
                "gathered",
                "Holds all gradients, in bf16: under accelerate FSDP2 keeps them whole while batches "
                "accumulate, unless accelerator_config: {gradient_accumulation_kwargs: {sync_each_batch: true}}.",
            )
        )
    return lines


def as_dict(recipe: Recipe, planned: list[PlannedStage], estimates: list[Estimate], options: Options) -> dict:
    """The plan for a program: units in the names, `null` where something is not known."""
    machine = options.machine
    stages = []
    for part, cost in zip(planned, estimates, strict=True):
        entry = {"parameters": None if part.config is None else count_parameters(part.config), **asdict(cost)}
        if cost.per_token is not None:
            entry["per_token"] |= {"model": cost.per_token.model, "executed": cost.per_token.executed}
        for name, held in (("memory", cost.memory), ("writing_memory", cost.writing_memory)):
            if held is not None:
                entry[name] |= {"total": held.total}
        stages.append(entry | {"fits": cost.fits(machine)})
    timed = [cost for cost in estimates if cost.seconds is not None]
    return {
        "recipe": str(recipe.path),
        "machine": {"name": machine.card.name, "gpus": machine.gpus, "memory_bytes": machine.memory_bytes}
        | {"tflops": machine.card.tflops, "source": machine.card.source},
        "mfu": options.mfu,
        "stages": stages,
        "total_seconds": sum(cost.seconds for cost in timed) if timed else None,
        "total_gpu_seconds": sum(cost.gpus * cost.seconds for cost in timed) if timed else None,
        "basis": [": ".join(line) for line in basis(planned, estimates, options)],
    }


def _machine_words(options: Options) -> str:
    machine = options.machine
    if machine.card.name == CPU:
        return f"{machine.gpus} CPU process{'es' if machine.gpus > 1 else ''}"
    name = "GPU of a machine that was not named" if machine.card.name == CUSTOM else machine.card.name
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 1e9:,.0f} GB each"
    return f"{machine.gpus} x {name}{memory}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{_number(seconds / 3600)} h"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 1e9 else f"{size / 1e9:.2g}"
