"""Checkpoint folders, ours and official."""
