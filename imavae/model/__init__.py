"""The VAE as stacked tensors: a leading member axis, and activations of shape (member, feature, batch)."""
