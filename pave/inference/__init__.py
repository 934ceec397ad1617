"""Answers about one video: generation, demo, server."""
