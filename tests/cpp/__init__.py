"""The C++ library, compared with what Python makes of the same artifacts."""
