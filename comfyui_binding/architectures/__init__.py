"""All that is known about a model: which layers read text, how to reach them, and the way back from a key."""
