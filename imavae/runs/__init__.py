"""A run on disk: session, folder, results, stored models, encoding of files."""
