"""Files of the user: video, sound, depth, feature files."""
