"""Tools in training: called within limits, their tokens not learned from, loops looked for in the last turn alone."""

import pytest
from datasets import Dataset

from tests.odpo.reference import Prefer, by_hand, gradients, longer
from tests.online.calling import CALL, chat_kit, hang, tell, triple
from tests.online.reference import distance, drifted

LOOP = " ab" * 400  # a counter loop too, with a few words behind it


def fail(number: int) -> str:
    """
    Raises.

    Args:
        number: any.
    """
    raise KeyError("no such thing")


def flood(number: int) -> str:
    """
    Answers at length.

    Args:
        number: any.
    """
    return "xyz " * 10_000


def repeat(number: int) -> str:
    """
    Answers the same again and again.

    Args:
        number: any.
    """
    return LOOP


@pytest.fixture
def make_calling(make_trainer, policy):
    """A trainer whose policy writes what it is told: text of each row's first turn, then of each turn after a tool."""

    def make(first, second, tools, **settings):
        texts = ["Triple seven.", "What is it?", "Say it.", "And now?"][: len(first) // 2]
        rows = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in texts])
        settings = {"per_device_train_batch_size": len(first), "max_completion_length": 256, **settings}
        trainer = make_trainer(
            Prefer(longer),
            drifted(policy),
            rows,
            {"tools": tools, "processing_class": chat_kit(policy)},
            shuffle_dataset=False,
            **settings,
        )
        return trainer, tell(trainer, first, second)

    return make


@pytest.mark.parametrize("form", ["pair", "weight"])
def test_results_are_read_and_not_learned(make_calling, policy, form):
    first = [CALL.format("triple"), "No tool.</s>", CALL.format("triple"), CALL.format("triple")]
    rows = {"pair": {}, "weight": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}}[form]
    second = ["So it is 21.</s>", "Twenty-one</s>", "I do not know what"]
    trainer, turns = make_calling(first, second, [triple], loss_form=form, **rows)
    loss, ours, buffered = gradients(trainer, trainer.args.gradient_accumulation_steps)
    assert len(turns) == 2 and all("[TOOL_RESULTS]" in text and "it is 21" in text for text in turns[1])
    hidden = sum((1 - batch["tool_mask"]).sum().item() for batch in buffered)
    assert hidden > 9 and sum((batch["tool_mask"] == 0).any(1).sum().item() for batch in buffered) == 3
    expected, theirs = by_hand(policy, trainer.model, buffered)
    assert loss == pytest.approx(expected, rel=1e-4) and distance(ours, theirs) < 1e-4
    for batch in buffered:  # with the results' tokens it would be another gradient
        batch["tool_mask"] = batch["completion_mask"]
    _, learned = by_hand(policy, trainer.model, buffered)
    assert distance(ours, learned) > 1e-2


def test_loops_are_looked_for_in_the_last_turn(make_calling):
    first = [CALL.format("repeat"), CALL.format("repeat"), CALL.format("repeat"), LOOP]
    second = ["Fine, that was", f"Again:{LOOP}", f"{LOOP}</s>"]
    trainer, _ = make_calling(first, second, [repeat], loop_min_tokens=32, max_completion_length=2048)
    _, _, (batch,) = gradients(trainer)
    assert list(trainer._logs["extra"]["looped"]) == [False, True, False, True]
    assert batch["win_probability"].tolist() == [1.0] * 4 and batch["keep"].all()


def test_tools_that_misbehave_do_not_stop_training(make_calling):
    first = [CALL.format("hang"), CALL.format("fail"), CALL.format("flood"), CALL.format("missing")]
    trainer, turns = make_calling(
        first, ["Well.</s>", "Oh.</s>", "Much.</s>", "No."], [hang, fail, flood],
        tool_seconds=0.2, tool_max_characters=40, max_steps=3,
    )  # fmt: skip
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "odpo/tool_timeouts" in entry]
    assert [entry["odpo/tool_timeouts"] for entry in log] == [1, 1, 1]  # of each batch
    assert log[0]["tools/failure_frequency"] == 3 / 4 and log[0]["tools/call_frequency"] == 1
    assert trainer.tool_limits.counts["failures"] == trainer.tool_limits.counts["cut"] == 3
    hung, failed, flooded, missing = turns[1]
    assert "did not answer within 0.2 s" in hung and "no such thing" in failed and "not found" in missing
    assert flooded.count("xyz") == 10 and "[cut: 40 of 40000 characters]" in flooded
    assert trainer.state.global_step == 3 and log[0]["grad_norm"] > 0
