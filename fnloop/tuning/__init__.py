"""Find hyperparameters by trying: a learning rate, a batch size."""
