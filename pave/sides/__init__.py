"""Side-channels: how a file becomes SideTokens and how a video becomes a file."""
