"""The shapes world: pictures of coloured shapes (drawing), captions (grammar), and a reader of pictures (scorer)."""
