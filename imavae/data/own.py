"""What a person's own settings build, checked against the protocol that it must follow."""

from __future__ import annotations

from typing import Any

from imavae.errors import require


def build_own(settings: Any, key: str, protocol: Any, *arguments: Any) -> Any:
    """``settings.build(*arguments)``, which must have all methods of ``protocol``.

    Raises:
        UserError: there is no such method, or what it builds lacks one.
    """
    name = type(settings).__name__
    remedy = f"add `build`, which returns {protocol.__module__}.{protocol.__name__}"
    require(callable(getattr(settings, "build", None)), f"{key} has a method build", f"{name} without it", remedy)
    built = settings.build(*arguments)
    methods = [method for method in vars(protocol) if not method.startswith("_")]
    missing = [method for method in methods if not callable(getattr(built, method, None))]
    rule = f"{name}.build returns a {protocol.__name__} with {', '.join(methods)}"
    require(not missing, rule, f"{type(built).__name__} without {', '.join(missing)}", "add what is missing")
    return built
