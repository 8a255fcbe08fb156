"""Stages: ``(state, x) -> (state, y)``, one file each, all with the same structure."""
