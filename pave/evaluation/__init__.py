"""Answers to a whole split, and their scores."""
