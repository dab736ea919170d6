"""`trainers/grpo.py` with rubrics and a judge: a model of this process, an endpoint, and what is refused."""

import json
import runpy
import signal
import sys

import pytest

from hf_cascade import assets, manifest, stage
from hf_cascade.grpo.config import CascadeGRPOConfig
from hf_cascade.grpo.judge import make_grader
from hf_cascade.rewards.rubric import rubric_reward
from tests.grpo.test_script import FLAGS
from tests.rewards import letters
from tests.rewards.chat_server import says, serving

PROMPTS = ["The cell is", "Rust has", "A force of", "Water and", "The sun", "Let x"]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Folder of a model that says whether a response has a letter."""
    folder = tmp_path_factory.mktemp("judge")
    letters.save(folder)
    return folder


@pytest.fixture
def grpo(policy, tmp_path, monkeypatch, capsys):
    """Call the script with flags over rows with these rubrics: the exit status and what it wrote to stderr."""
    script = runpy.run_path(str(assets.find("trainers/grpo.py")), run_name="grpo")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(rubric_reward, "grader", None)
    monkeypatch.setattr(rubric_reward, "template", rubric_reward.template)

    def call(*flags, rubrics=(["A", "E", "S"],) * 6, rewards=("rubric_reward",), model=policy):
        rows = [{"prompt": prompt, "rubric": rubric} for prompt, rubric in zip(PROMPTS, rubrics, strict=True)]
        rows = [row if row["rubric"] != "missing" else {"prompt": row["prompt"]} for row in rows]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "grpo.yaml").write_text("datasets: [{path: json, data_files: rows.jsonl, split: train}]\n")
        words = ["grpo.py", "--config", "grpo.yaml", "--output_dir", "out", "--model_name_or_path", str(model), *FLAGS]
        words += ["--max_steps", "2", "--judge_template", letters.QUESTION, "--reward_funcs", *rewards]
        monkeypatch.setattr(sys, "argv", [*words, *flags])
        with pytest.raises(SystemExit) as ended:
            stage.run_script(script["main"], lambda: script["make_parser"]().parse_args_and_config())
        signal.signal(signal.SIGTERM, before)
        return ended.value.code, capsys.readouterr().err

    return call


def test_two_steps_with_a_judge_of_this_process(grpo, judge, tmp_path):
    """Rubrics beside a format reward, each with its weight; the judge is an input of the stage."""
    rewards = ("rubric_reward", "format_reward", "--reward_weights", "0.9", "0.1")
    status, error = grpo("--judge_model_name_or_path", str(judge), rewards=rewards)
    assert status == 0, error
    log = json.loads((tmp_path / "out" / "log.json").read_text())
    assert len(log) == 2
    for entry in log:
        met = entry["rewards/rubric_reward/mean"]
        assert met == pytest.approx(entry["rubric_reward/satisfied"], abs=1e-3) and 0 < met < 1
        assert entry["rubric_reward/criteria"] == 3 and entry["rubric_reward/failed_rate"] == 0
        assert entry["rewards/format_reward/mean"] == 0  # random text
        assert entry["grpo/unjudged_rate"] == 0
    record = manifest.read(tmp_path / "out")
    assert record["inputs"]["judge_model_name_or_path"] == str(judge)
    assert "judge_model_name_or_path" not in record["config"]


def test_rows_without_a_rubric_have_the_other_rewards(grpo, judge, tmp_path):
    """No rubric is no lack: a response that another function judged teaches."""
    (tmp_path / "other.py").write_text(
        "def length(completions, **columns): return [len(c) / 50 for c in completions]\n"
    )
    rewards = ("rubric_reward", "other.py:length")
    status, error = grpo("--judge_model_name_or_path", str(judge), rewards=rewards, rubrics=[None, ["A"]] * 3)
    assert status == 0, error
    assert all(entry["grpo/unjudged_rate"] == 0 for entry in json.loads((tmp_path / "out" / "log.json").read_text()))


def answer(body, _):
    response, _, criterion = body["messages"][0]["content"].rpartition("\n")
    return says("yes" if criterion.lower() in response else "no")


def test_two_steps_with_a_judge_elsewhere(grpo, tmp_path):
    with serving(answer) as server:
        flags = [
            "--judge_url",
            f"http://127.0.0.1:{server.server_port}/v1",
            "--judge_model",
            "j",
            "--judge_cache",
            "kept",
        ]
        flags += ["--judge_max_tokens", "20", "--judge_chat_template_kwargs", '{"enable_thinking": false}']
        status, error = grpo(*flags)
        assert status == 0, error
        assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in server.bodies)
        assert {body["max_tokens"] for body in server.bodies} == {20} and {body["model"] for body in server.bodies} == {
            "j"
        }
        first = len(server.bodies)
        assert (tmp_path / "kept").is_file()
        manifest_config = manifest.read(tmp_path / "out")["config"]
        assert manifest_config["judge_model"] == "j"
        (tmp_path / "out").rename(tmp_path / "before")
        status, error = grpo(*flags)  # the same run again: nothing is paid for twice
        assert status == 0 and len(server.bodies) == first
    rewards = [
        [entry["rewards/rubric_reward/mean"] for entry in json.loads((tmp_path / name / "log.json").read_text())]
        for name in ("before", "out")
    ]
    assert rewards[0] == rewards[1]


def test_a_spent_budget_stops_so_that_the_run_can_go_on(grpo, monkeypatch):
    with serving(answer) as server:
        flags = ["--judge_url", f"http://127.0.0.1:{server.server_port}/v1", "--judge_model", "j"]
        status, error = grpo(*flags, "--judge_max_requests", "5")
        assert status == stage.STOPPED and len(server.bodies) == 5
        assert "max_requests=5" in error and "judge_max_requests" in error
        monkeypatch.setenv("WORLD_SIZE", "2")
        arguments = make_arguments(judge_url="http://127.0.0.1:1/v1", judge_model="j", judge_max_requests=5)
        assert make_grader(arguments).endpoint.max_requests == 2


def make_arguments(**given):
    from hf_cascade.grpo.arguments import GRPOArguments

    return GRPOArguments(**given)


URL = ("--judge_url", "http://127.0.0.1:9/v1")
LOCAL = ("--judge_model_name_or_path", "nothing")


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        ((), {}, "rubric_reward has no judge: set judge_url and judge_model"),
        (URL, {}, "without judge_model: name the model"),
        ((*URL, "--judge_model", "j", *LOCAL), {}, "judge_url and judge_model_name_or_path: set"),
        ((*LOCAL, "--judge_cache", "kept"), {}, "judge_cache without judge_url"),
        ((*URL, "--judge_model", "j"), {"rewards": ["format_reward"]}, "without rubric_reward among reward_funcs"),
        ((*LOCAL, "--judge_template", "{response}"), {}, "judge template has the fields ['response']"),
        (LOCAL, {"rubrics": ["missing"] * 6}, "needs a column `rubric`"),
        (LOCAL, {"rewards": ["rubric_reward", "stem_reward"]}, "stem_reward needs a column: `answer`"),
        (LOCAL, {"rubrics": [["A"]] * 5 + [[" "]]}, "row 5: criterion ' ' is empty"),
        (LOCAL, {"rubrics": [None] * 6}, "no row has a criterion"),
        ((*URL, "--judge_model", "j", "--judge_max_requests", "0"), {}, "judge_max_requests=0: give"),
        ((*URL, "--judge_model", "j", "--judge_max_tokens", "0"), {}, "max_tokens=0"),
        (("--judge_url", "nowhere", "--judge_model", "j"), {}, "http://host:port/v1"),
        ((*LOCAL, "--judge_chat_template_kwargs", "[1]"), {}, "judge_chat_template_kwargs=[1]: give a mapping"),
        (LOCAL, {}, "nothing has no tokenizer that opens"),
    ],
)
def test_what_is_refused_before_weights_are_loaded(grpo, tmp_path, monkeypatch, flags, changes, message):
    for opener in ("hf_cascade.online.opening", "hf_cascade.rewards.graders"):
        monkeypatch.setattr(f"{opener}.load_model", None)
    status, error = grpo(*flags, **changes)
    lines = [line for line in error.splitlines() if line.startswith("hf-cascade: error")]
    assert status == stage.BAD_INPUT and len(lines) == 1 and message in lines[0], error
    assert not (tmp_path / "out").exists()


def test_the_policys_own_judge_must_be_a_chat_model(grpo, policy):
    status, error = grpo("--judge_model_name_or_path", str(policy))
    assert status == stage.BAD_INPUT and f"{policy} has no chat template" in error


def test_the_flags_of_a_judge_are_known_to_recipes():
    from hf_cascade import fields

    known = fields.flags("grpo")
    assert {name for name in known if name.startswith("judge_")} == {
        "judge_url",
        "judge_model",
        "judge_model_name_or_path",
        "judge_template",
        "judge_max_tokens",
        "judge_chat_template_kwargs",
        "judge_cache",
        "judge_max_requests",
    }
    assert "beta" in known and hasattr(CascadeGRPOConfig, "beta")
