"""The protocol of effects, and what they share; each effect lies with its subject."""
