"""The kinds of data a configuration can name."""
