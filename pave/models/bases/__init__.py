"""The video language models; one file each."""
