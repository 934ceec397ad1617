"""Reading media: video frames, sound, stored features."""
