"""ONNX in, ONNX out: tracing, exact rewrites, precision, cost. Nothing here knows a runtime or the command line."""
