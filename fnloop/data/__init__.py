"""Data sources: batches as a function of the cursor, and adapters for iterables."""
