"""Partially defocused photographs made of sharp ones."""
