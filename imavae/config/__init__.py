"""Every setting: type, default, rule and meaning; variants chosen by name; plugins."""
