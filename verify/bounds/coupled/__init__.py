"""Bounds over ℓ2 balls in which neurons cannot all move at once."""
