"""The patch: plain torch."""
