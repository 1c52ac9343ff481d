"""KServe v2, also called the Open Inference Protocol: what Triton, OpenVINO Model Server, MLServer and KServe speak."""
