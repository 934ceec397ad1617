"""Frozen encoders of side-channels."""
