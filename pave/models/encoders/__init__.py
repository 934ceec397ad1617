"""The frozen encoders of bases and side-channels."""
