"""Models that judge and that `llm-gym feedback` trains: the config in the folder of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_gym import __version__
from llm_gym.errors import LLMGymError


def origin(kind: str, version: int, model: str) -> dict[str, Any]:
    """Return what the config of a model of a kind begins with: its format, its base model, and what wrote it."""
    from llm_gym.models.load import hub_id

    return {f"llm_gym_{kind}": version, "model": model, "hub_id": hub_id(model), "version": __version__}


def write_config(folder: Path, kind: str, config: dict[str, Any]) -> None:
    """Write the config of a model of a kind into its folder, as `read_config` reads it."""
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / f"{kind}.json").write_text(text, encoding="utf-8")


def read_config(folder: Path, kind: str, version: int, command: str) -> dict[str, Any]:
    """Return the config of a model of a kind, such as `preference`, that `llm-gym feedback COMMAND` wrote.

    Args:
        folder: Its folder, with `KIND.json`.
        kind: What the model is.
        version: Value of `llm_gym_KIND` in the config.
        command: What writes such folders.

    Raises:
        LLMGymError: There is no such config, it is of another version, or it names no base model.
    """
    name = f"{kind}.json"
    try:
        config = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LLMGymError(
            f"{str(folder)!r} is no {kind} model: it has no {name} that can be read; give a folder that "
            f"`llm-gym feedback {command}` wrote"
        ) from error
    if not isinstance(config, dict) or config.get(f"llm_gym_{kind}") != version:
        raise LLMGymError(f"{str(folder)!r} was written by another version of llm_gym; train it again, or use that one")
    if not isinstance(config.get("model"), str):
        raise LLMGymError(f"{str(folder / name)!r} names no model that it was trained on; train it again")
    return config
