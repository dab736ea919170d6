"""Logit distillation from a frozen teacher (paper section 2, Algorithm 1), as TRL trainers."""
