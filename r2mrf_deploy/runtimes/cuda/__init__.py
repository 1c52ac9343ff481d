"""CUDA from Python: the bindings, and execution contexts with their buffers, streams and events."""
