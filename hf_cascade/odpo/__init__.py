"""Online DPO on a pairwise reward model's probabilities (paper section 4), as a TRL trainer."""
