"""Values: the state, keys, cursor, metrics and gradients. Data only."""
