"""Radii that are proven, one way of proving a file."""
