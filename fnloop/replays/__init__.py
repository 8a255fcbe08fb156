"""Replay: run one step again and inspect it."""
