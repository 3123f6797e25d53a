"""Bounds of a network over balls."""
