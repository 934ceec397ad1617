"""Scores of answers; no torch."""
