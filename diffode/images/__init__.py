"""Images: read from disk (datasets), and written to it (writers)."""
