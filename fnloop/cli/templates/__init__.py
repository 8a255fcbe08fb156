"""What ``fnloop new`` writes: files of code that runs, and their tests, under names to replace."""
