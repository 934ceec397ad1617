"""What tests share: tiny models, media, data sets and servers made on the spot."""
