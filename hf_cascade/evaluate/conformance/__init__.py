"""Proof that a task's scorer is right: models that know the answers, and responses with known verdicts."""
