"""The C++ library, compared with Python on the same artifacts."""
