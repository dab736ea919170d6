"""GRPO with Magistral's changes (paper section 5; arXiv 2506.10910), as a TRL trainer."""
