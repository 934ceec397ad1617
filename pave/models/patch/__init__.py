"""The patch."""
