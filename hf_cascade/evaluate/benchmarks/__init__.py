"""What the tasks in `evals/tasks` call by name: rows from the Hub or from disk, prompts, and scorers."""
