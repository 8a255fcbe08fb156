"""Data: batches as a function of the cursor, and whatever else can be iterated."""
