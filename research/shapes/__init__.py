"""The shapes world: pictures of coloured shapes (drawing), captions (grammar, captions), and a reader (scorer)."""
