"""Many processes: meshes, how tensors are divided among them, and what they tell one another."""
