"""What a report on Online DPO shows."""

from hf_cascade.online.report import Report

REPORT = Report(
    panels=(
        ("win rate against the start", ("odpo/win_rate",), 0.5),
        ("responses in an infinite loop", ("odpo/loop_rate",), None),
        ("tokens longer than the start", ("odpo/length_drift_tokens",), 0.0),
        ("KL to the reference, nats a response", ("odpo/kl",), 0.0),
    ),
    kept=("odpo/", "rewards/", "completions/mean"),
    told=("eval_odpo/",),
)
