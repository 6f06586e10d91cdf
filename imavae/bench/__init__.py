"""Measurements of the trainer and of a study."""
