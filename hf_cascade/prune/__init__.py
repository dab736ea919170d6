"""Pruning a `PreTrainedModel` to an exact smaller shape (paper section 2, Algorithm 2): statistics, plan, weights."""
