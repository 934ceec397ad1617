"""Scoring rules; no torch."""
