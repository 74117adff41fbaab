"""The things world: scenes of emoji drawings (scenes), their captions (grammar), and a reader of them (scorer)."""
