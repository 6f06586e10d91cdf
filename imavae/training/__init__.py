"""Training an ensemble: many members of one architecture as one batched program, each as if it were alone."""
