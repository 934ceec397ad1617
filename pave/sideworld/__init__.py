"""The small world: generated clips with questions about them."""
