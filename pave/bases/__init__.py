"""Base video language models."""
