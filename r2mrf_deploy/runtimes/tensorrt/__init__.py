"""TensorRT and TensorRT-RTX: the builder, the plan and its runner."""
