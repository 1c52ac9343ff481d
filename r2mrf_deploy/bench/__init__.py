"""Benchmarks by trtexec's protocol."""
