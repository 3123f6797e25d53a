"""Several verifications as one."""
