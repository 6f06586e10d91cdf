"""Synthetic worlds: sources, the mixings that turn them into observations, and their splits."""
