"""Compression: the cheapest form of a network whose maps stay within a stated bound."""

from r2mrf_deploy.compression.artifacts import Compressed, CompressionOptions, compress_artifact

__all__ = ["Compressed", "CompressionOptions", "compress_artifact"]
