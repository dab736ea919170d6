"""What Online DPO and GRPO share around TRL's GRPO trainer."""
