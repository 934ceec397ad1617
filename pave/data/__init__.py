"""From media and annotations to batches."""
