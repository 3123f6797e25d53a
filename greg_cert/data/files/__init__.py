"""Image files: found, decoded, kept in memory or read as they are asked for."""
