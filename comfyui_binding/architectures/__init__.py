"""All that is known about a model: which layers read text, how to reach them, and the gradient from keys to text."""
