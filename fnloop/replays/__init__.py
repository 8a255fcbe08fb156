"""Replay: one step of a run again, seen from inside."""
