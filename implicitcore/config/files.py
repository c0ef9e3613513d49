"""Configurations in files: YAML, where PyYAML is installed, and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from implicitcore.errors import ConfigError, describe_error, show


def load_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML or JSON file that holds a mapping; nothing in it can run code.

    Arguments:
        path: a file named ``*.yaml``, ``*.yml`` or ``*.json``.

    Returns:
        Its content. YAML's ``1e-5`` comes as a text; :func:`implicitcore.build` reads it as the
        number.

    Raises:
        ConfigError: the file cannot be read, holds something else, says a key twice or has a YAML
            tag.
    """
    file = Path(path)
    readers = {".json": _read_json, ".yaml": _read_yaml, ".yml": _read_yaml}
    try:
        if file.suffix.lower() not in readers:
            raise ConfigError(["expected a file named *.yaml, *.yml or *.json"])
        data = readers[file.suffix.lower()](file.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ConfigError([f"expected a mapping, received {show(data)}"])
    except ConfigError as error:
        raise ConfigError([f"{file}: {problem}" for problem in error.problems]) from error
    except RecursionError as error:
        raise ConfigError([f"{file}: nested too deep"]) from error
    except (OSError, ValueError) as error:  # what is not UTF-8 or JSON is a ValueError
        raise ConfigError([f"{file}: {describe_error(error)}"]) from error
    return data


def _read_json(text: str) -> Any:
    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_keys([key for key, _ in pairs])
        return dict(pairs)

    return json.loads(text, object_pairs_hook=mapping)


def _read_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(
            [
                "reading YAML needs PyYAML: pip install 'implicitcore[yaml]', or write the "
                "file as JSON"
            ]
        ) from error

    class Loader(yaml.SafeLoader):
        """Plain data alone, and no key twice."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            _check_keys([key.value for key, _ in node.value])
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ConfigError([describe_error(error)]) from error


def _check_keys(keys: Sequence[Any]) -> None:
    """Refuse what readers of YAML and JSON pass over.

    Of two equal keys the last would win in silence.
    """
    twice = [key for index, key in enumerate(keys) if key in keys[:index]]
    if twice:
        raise ConfigError([f"{key!r} stands there twice" for key in twice])
