"""Data sets and benchmarks: questions, prompts, targets, scores; no torch."""
