"""Metrics of an ensemble, vectorised over members; evaluate.py has the glossary of every name."""
