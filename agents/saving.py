"""Folders that are whole or not there at all, and from which an algorithm can be loaded."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llm_gym.errors import LLMGymError

ARGUMENTS, VALUE_HEAD = "algorithm.json", "value_head.safetensors"


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """Give a folder to write into, and put it in the place of `target` once the block has ended well.

    A folder that was there is moved away first and deleted last, and comes back if the new one cannot take its place.

    Raises:
        LLMGymError: Tensors could not be written, as on a full disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)) for _ in range(2))
    try:
        yield aside
        aside.chmod(0o755)
        if target.exists():
            os.replace(target, old)
        os.replace(aside, target)
    except SafetensorError as error:
        raise LLMGymError(f"{target} could not be written ({error}); free some space and run it again") from error
    finally:
        if any(old.iterdir()) and not target.exists():
            os.replace(old, target)
        for stray in (aside, old):
            shutil.rmtree(stray, ignore_errors=True)


def save_algorithm(algorithm: Any, path: Any) -> None:
    """Write what is trained and the arguments of an algorithm of ours into a folder.

    Raises:
        LLMGymError: There is something else at that place, which is not overwritten.
    """
    policy, target = algorithm.policy, Path(path)
    ours = target.is_dir() and ((target / ARGUMENTS).exists() or not any(target.iterdir()))
    if target.exists() and not ours:
        raise LLMGymError(f"{path} exists and was not written by {type(algorithm).__name__}.save; give another folder")
    arguments = {
        "algorithm": type(algorithm).__name__,
        **{name: getattr(algorithm, name) for name in sorted(algorithm.options() - {"policy_kwargs"})},
        "learning_rate": algorithm.lr_schedule(1),
        "seed": algorithm.seed,
        "policy_kwargs": policy.saved_arguments(),
    }
    with folder_aside(target) as aside:
        policy.save_pretrained(aside)
        save_file(policy.value_head.state_dict(), aside / VALUE_HEAD)
        (aside / ARGUMENTS).write_text(json.dumps(arguments, indent=2) + "\n")


def load_algorithm(cls: Any, path: Any, env: Any, device: Any, changes: dict[str, Any]) -> Any:
    """Return an algorithm of class `cls` from a folder that `save_algorithm` wrote.

    Raises:
        LLMGymError: Another folder, or one of another algorithm.
    """
    from agents.policy import LLMPolicy

    folder = Path(path)
    try:
        arguments = json.loads((folder / ARGUMENTS).read_text())
    except (OSError, ValueError) as error:
        raise LLMGymError(f"{path} is not a folder that {cls.__name__}.save wrote ({error})") from error
    if (name := arguments.pop("algorithm", None)) != cls.__name__:
        raise LLMGymError(f"{path} was saved by {name}, not by {cls.__name__}; load it with that")
    policy_kwargs = arguments.pop("policy_kwargs")
    place = "adapter" if (folder / "adapter_config.json").exists() else "model"
    policy_kwargs[place] = str(folder)
    algorithm = cls(LLMPolicy, env, device=device, policy_kwargs=policy_kwargs, **{**arguments, **changes})
    try:
        algorithm.policy.value_head.load_state_dict(load_file(folder / VALUE_HEAD))
    except (OSError, SafetensorError) as error:
        raise LLMGymError(f"{folder / VALUE_HEAD} cannot be read ({error}); save the algorithm again") from error
    return algorithm
