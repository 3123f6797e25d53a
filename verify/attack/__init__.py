"""Attacks: the upper end of every bracket."""
