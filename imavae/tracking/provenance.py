"""Versions of the code that made a study."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("imavae", "torch", "numpy", "scipy", "ray", "optuna", "hydra-core", "mlflow")


def provenance() -> dict[str, str]:
    """Tags with the versions of Python and the packages and, in a checkout, the git commit."""
    tags = {"imavae.version.python": platform.python_version()}
    for package in PACKAGES:
        try:
            tags[f"imavae.version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # imavae need not be installed to be run
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        try:
            commit, changes = (
                subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
                for command in (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
            )
        except (OSError, subprocess.SubprocessError):  # there is no git, or no commit
            return tags
        tags |= {"mlflow.source.git.commit": commit, "imavae.git.modified": str(bool(changes)).lower()}
    return tags
