"""Rewards: a pairwise reward model and its calibration, judges, verifiable answers; all are TRL reward functions."""
