"""The tiny recipes name shipped files: all of them are found from a folder that is not the checkout."""

import pytest

from hf_cascade import cli
from hf_cascade.recipe import load_recipe
from hf_cascade.rewards.verifiable import load_reward


@pytest.mark.parametrize("recipe", ["instruct", "reasoning"])
def test_rewards_of_the_reports_are_found(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = {stage.name: stage for stage in load_recipe(f"recipes/tiny/{recipe}.yaml").stages}
    rewards = stages[f"{recipe}-report"].settings["reward"]
    assert len(rewards) == 2 and all(callable(load_reward(name)) for name in rewards)


def test_a_reward_s_file_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no file gone/rules.py.*allowed are exact_match"):
        load_reward("gone/rules.py:met")


@pytest.mark.parametrize("words", [["--config", "recipes/tiny/evaluate.yaml"], ["--config=recipes/tiny/evaluate.yaml"]])
def test_a_shipped_file_of_flags_is_found(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", *words, "--model", "gone/model/x", "--output_dir", "out"]) == 2
    assert "gone/model/x" in capsys.readouterr().err  # the flags were read
    assert cli.main(["evaluate", "--config", "gone.yaml", "--model", "x", "--output_dir", "out"]) == 2
    assert "gone.yaml" in capsys.readouterr().err
