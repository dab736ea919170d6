"""What a report on GRPO shows."""

from hf_cascade.online.report import Report

REPORT = Report(
    panels=(
        ("reward, without length penalty", ("grpo/reward",), None),
        ("reward by function", ("rewards/*/mean",), None),
        ("tokens of a response", ("completions/mean_length",), None),
        ("share of responses that end badly", ("grpo/loop_rate", "grpo/truncated_not_loop_rate"), None),
        ("share of groups with equal rewards", ("grpo/dead_rate",), None),
        ("groups learned from", ("grpo/kept_groups",), None),
        ("entropy, nats a token", ("entropy",), None),
        ("share of tokens clipped", ("clip_ratio/low_mean", "clip_ratio/high_mean"), None),
    ),
    kept=("grpo/", "reward", "completions/mean", "completions/clipped", "entropy", "clip_ratio/"),
    told=("eval_grpo/", "eval_reward", "eval_completions/", "eval_entropy"),
)
