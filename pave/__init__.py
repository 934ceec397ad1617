"""Adapting frozen video language models to new signals (PAVE, arXiv 2503.19794)."""

__version__ = "0.1.0"
