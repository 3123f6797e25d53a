"""Radii by coupled bounds."""
