"""Measuring a family of models: held-out text against the teacher, lm-eval tasks, tables."""
