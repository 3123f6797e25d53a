"""The loss of a step: its terms, and how they are differentiated."""
