"""throughput.py: figures by hand, a clock that can be set, and a real training whose log hangs together."""

import time

import pytest
import torch
from transformers import OlmoConfig, OlmoForCausalLM

from hf_cascade.costs import step_flops
from hf_cascade.data.packing import PackedCollator
from hf_cascade.distill import throughput
from hf_cascade.distill.throughput import Throughput, device_peak, linear_parameters, measured_peak, rates, seen
from tests.data import tiny
from tests.distill import setting
from tests.prune import families

CPU = torch.device("cpu")


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)

    def __call__(self, seconds: float) -> None:
        self.now += seconds


def counter(student=None, teacher=None, peak: float = 1e9, **kwargs) -> Throughput:
    made = Throughput(student or setting.student(), teacher, device=CPU, dtype=torch.float32, **kwargs)
    made.peak = peak
    return made


def batch(tokens: int = 8, rows: int = 2) -> dict:
    return {"input_ids": families.ids(rows, tokens)}


def test_rates_by_hand():
    rows = [[100.0, 6e9, 2.0, 0.5, 1e9], [300.0, 2e9, 4.0, 1.0, 3e9]]
    assert rates(rows) == {
        "distill/tokens_per_second": 400 / 4,  # the slowest process's seconds
        "distill/mfu": 8e9 / (4.0 * 4e9),
        "distill/teacher_share": 1.5 / 6,
    }
    copied = rates([rows[0], rows[0]], copies=2)
    assert copied == {"distill/tokens_per_second": 50, "distill/mfu": 6e9 / (2 * 2e9), "distill/teacher_share": 0.25}
    assert "distill/teacher_share" not in rates(rows, has_teacher=False)
    assert rates([[0.0, 0.0, 0.0, 0.0, 1e9]]) == {}


def test_tokens_and_keys_of_a_batch():
    ids = torch.ones(2, 4, dtype=torch.long)
    tokens, keys = seen({"input_ids": ids})
    assert (tokens, keys.tolist()) == (8, [1, 2, 3, 4] * 2)
    positions = torch.tensor([[0, 1, 0, 1], [5, 6, 7, 0]])  # documents, and one that began in another row
    assert seen({"input_ids": ids, "position_ids": positions})[1].tolist() == [1, 2, 1, 2, 6, 7, 8, 1]
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    tokens, keys = seen({"input_ids": ids, "attention_mask": mask})
    assert (tokens, keys.tolist()) == (5, [0, 0, 1, 2, 1, 2, 3, 0])
    square = torch.ones(2, 1, 4, 4)
    assert seen({"input_ids": ids, "attention_mask": square})[0] == 8
    packed = PackedCollator()(list(tiny.packed(16).rows(2)))
    assert seen(packed)[1].sum() == (packed["position_ids"] + 1).sum()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_flops_are_those_of_the_plan(family, monkeypatch):
    clock = Clock(monkeypatch)
    student, teacher = families.build(family), families.build(family, hidden_size=60)
    made = counter(student, teacher)
    made.on_train_begin(None, None, None)
    inputs = batch(tokens=20)
    clock(2.0)
    made.step(inputs)
    mean = {window: float(torch.arange(1, 21).clamp(max=window or 20).float().mean()) for window in (None, 8)}
    flops = step_flops(student.config.to_dict(), teacher.config.to_dict(), mean)
    metrics = made.metrics()
    assert metrics["distill/mfu"] == pytest.approx(40 * flops.model / (2.0 * 1e9))
    assert metrics["distill/tokens_per_second"] == 20


def test_models_of_other_families_count_by_their_linear_layers(monkeypatch):
    clock = Clock(monkeypatch)
    config = OlmoConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    model = OlmoForCausalLM(config)
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * 24) + 97 * 16
    assert linear_parameters(model) == (matrices, 1.0)
    made = counter(model, model)
    made.on_train_begin(None, None, None)
    clock(1.0)
    made.step(batch())
    assert made.metrics()["distill/mfu"] == pytest.approx(16 * (6 + 2) * matrices / 1e9)


def test_what_is_not_trained_has_no_gradient_to_count(monkeypatch):
    clock = Clock(monkeypatch)
    model = families.build("llama").requires_grad_(False)
    assert linear_parameters(model)[1] == 0.0
    made = counter(model)
    made.on_train_begin(None, None, None)
    clock(1.0)
    made.step(batch())
    flops = step_flops(model.config.to_dict(), None, {None: 4.5}, trained=0.0)
    assert made.metrics()["distill/mfu"] == pytest.approx(16 * flops.student / 1e9)
    vision = families.build("mistral3")
    tower = linear_parameters(vision.model.vision_tower)[0]
    whole = sum(module.weight.numel() for module in vision.modules() if isinstance(module, torch.nn.Linear))
    assert tower > 0 and linear_parameters(vision)[0] == whole - tower


def test_evaluation_and_checkpoints_are_not_training(monkeypatch):
    clock, made = Clock(monkeypatch), counter(teacher=setting.teacher())
    assert made.metrics() == {}  # nothing yet
    clock(50.0)  # loading
    made.on_train_begin(None, None, None)
    for _ in range(2):
        clock(1.0)  # data
        with made.teacher():
            clock(2.0)
        clock(3.0)
        made.step(batch())
        clock(0.5)  # optimizer
        made.on_step_end(None, None, None)
    with made.teacher():
        clock(20.0)
    made.on_evaluate(None, None, None)
    clock(30.0)
    made.on_save(None, None, None)
    metrics = made.metrics()
    assert metrics["distill/tokens_per_second"] == pytest.approx(32 / 13)
    assert metrics["distill/teacher_share"] == pytest.approx(4 / 13)
    clock(4.0)
    made.step(batch())
    assert made.metrics()["distill/tokens_per_second"] == pytest.approx(16 / 4)  # since the last log
    assert made.metrics() == {}


def test_a_second_training_starts_anew(monkeypatch):
    clock, made = Clock(monkeypatch), counter()
    for seconds in (1.0, 3.0):
        made.on_train_begin(None, None, None)
        clock(seconds)
        made.step(batch())
        clock(9.0)
        made.on_step_end(None, None, None)
    assert made.metrics()["distill/tokens_per_second"] == pytest.approx(16 / 12)


def test_processes_are_gathered(monkeypatch):
    clock = Clock(monkeypatch)
    made = counter(gather=lambda row: torch.cat([row, row * torch.tensor([[1, 1, 2, 1, 1]])]))  # the other is slower
    made.on_train_begin(None, None, None)
    clock(2.0)
    made.step(batch())
    assert made.metrics()["distill/tokens_per_second"] == 32 / 4


def test_a_gpus_teacher_is_timed_by_events(monkeypatch):
    """With stand-ins for CUDA's events, which no CPU has: recorded in order, read at the log, in milliseconds."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            log.append("read")
            return 250.0

    clock, made = Clock(monkeypatch), counter(teacher=setting.teacher())
    made.on_train_begin(None, None, None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    made.device = torch.device("cuda")
    clock(1.0)
    with made.teacher():
        log.append("forward")
    made.step(batch())
    assert log == ["record", "forward", "record"]  # nothing waited for
    made.device = CPU
    assert made.metrics()["distill/teacher_share"] == pytest.approx(0.25) and log[3:] == ["wait", "read"]


def test_peaks(monkeypatch):
    assert measured_peak(CPU, torch.float32) > 1e7
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert device_peak(torch.device("cuda"), torch.bfloat16) == pytest.approx(989.4e12)
    assert device_peak(torch.device("cuda"), torch.float32) == pytest.approx(66.9e12)
    monkeypatch.setattr(throughput, "measured_peak", lambda device, dtype: 7.0)
    assert device_peak(CPU, torch.float32) == 7.0
    assert device_peak(torch.device("cuda"), torch.float64) == 7.0  # the sheet's is not listed


class Timed(setting.CascadeDistillationTrainer):
    """A distillation trainer with its throughput counted."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self, "throughput"):
            self.throughput = Throughput(
                self._student(),
                self.accelerator.unwrap_model(self.teacher.model),
                device=self.accelerator.device,
                dtype=self._student().dtype,
                gather=self.accelerator.gather,
            )
            self.add_callback(self.throughput)
            targets = self.teacher.targets

            def timed(*given):
                with self.throughput.teacher():
                    return targets(*given)

            self.teacher.targets = timed
            self.stands_in = True

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if hasattr(self, "stands_in"):
            self.throughput.step(inputs)
        return loss

    def log(self, logs, start_time=None):
        if hasattr(self, "stands_in") and "loss" in logs:
            logs.update(self.throughput.metrics())
        super().log(logs, start_time)


def test_a_training_logs_figures_that_hang_together(tmp_path, monkeypatch):
    monkeypatch.setattr(setting, "CascadeDistillationTrainer", Timed)
    settings = {"max_steps": 4, "logging_steps": 2, "gradient_accumulation_steps": 2, "eval_strategy": "steps"}
    trainer = setting.distiller(tmp_path, **settings, eval_steps=1, trainer={"eval_dataset": tiny.packed(16)})
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    tokens = 2 * 2 * 2 * 16  # steps, batches, rows, tokens
    rows = list(tiny.packed(16).rows(16))
    for number, entry in enumerate(logs):
        spent = tokens / entry["distill/tokens_per_second"]
        assert 0 < spent < seconds and 0 < entry["distill/teacher_share"] < 1
        positions = PackedCollator()(rows[8 * number : 8 * number + 8])["position_ids"]
        configs = [model.config.to_dict() for model in (setting.student(), setting.teacher())]
        flops = step_flops(*configs, {None: float((positions + 1).double().mean())})
        done = entry["distill/mfu"] * trainer.throughput.peak * spent
        assert done == pytest.approx(tokens * flops.model) and flops.teacher > 0
    assert not any("distill/mfu" in entry for entry in trainer.state.log_history if "eval_loss" in entry)
