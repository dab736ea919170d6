"""Suites of benchmarks: the paper's Tables 2 to 5 run, resumed, and set beside the paper's figures and the parent's."""
