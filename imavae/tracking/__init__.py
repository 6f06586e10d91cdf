"""Tracking of results: the tracker's interface, MLflow, its server and its page."""
