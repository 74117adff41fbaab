"""Helpers of the tests: the host, tiny models, sampling, reference numbers."""
