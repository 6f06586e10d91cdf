"""The figures of the paper: each reads studies of ``search_spaces/paper/``, and is judged by the published numbers."""
