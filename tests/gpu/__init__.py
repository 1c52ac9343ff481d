"""Tests that need a CUDA device: `pytest -m gpu`. Without one they skip and say what they need."""
