"""The tables and figures of a report as LaTeX."""
