"""The command line: composition by Hydra, help, messages and exit codes."""
