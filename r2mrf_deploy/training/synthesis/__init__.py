"""Synthesis of partially defocused photographs from sharp ones."""
