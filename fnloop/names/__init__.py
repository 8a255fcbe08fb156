"""Names: where each comes from, and what to use for one that is not there."""
