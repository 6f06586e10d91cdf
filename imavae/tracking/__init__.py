"""The tracker protocol, MLflow, its server and its page."""
