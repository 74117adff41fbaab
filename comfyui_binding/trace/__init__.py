"""EBCA Trace: what is recorded during a run, the record, its file, and the attention maps of words in it."""
