"""The store: checkpoints without pickle, atomic, and verified when they are loaded."""
