"""Checkpoints of a run: everything that the next update depends on, so that a killed run goes on as if nothing was.

A checkpoint is a folder of safetensors and JSON; loading it executes nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agents.base import TextAlgorithm
from agents.saving import folder_aside
from llm_gym.errors import LLMGymError
from llm_gym.feedback import memory

FOLDER = "checkpoints"
KEPT = 2  # of which the older is never touched while the newer is written
FORMAT = 1


def save_checkpoint(run: Path, algorithm: TextAlgorithm, update: int, elapsed: float) -> None:
    """Write the checkpoint of an update, whole or not at all, and delete all but the last `KEPT`."""
    tensors, optimizer = _optimizer_state(algorithm.policy.optimizer)
    tensors |= {f"policy/{name}": value for name, value in algorithm.policy.state_dict().items()}
    tensors |= {f"algorithm/{name}": value for name, value in algorithm.tensors().items()}
    tensors["generator"] = algorithm.policy.generator.get_state()
    state = {
        "format": FORMAT,
        "algorithm": type(algorithm).__name__,
        "update": update,
        "elapsed": elapsed,
        "optimizer": optimizer,
        "state": algorithm.state(),
    }
    with folder_aside(run / FOLDER / f"{update:08d}") as folder:
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "tensors.safetensors")
        (folder / "state.json").write_text(json.dumps(state) + "\n")
        (folder / "memory.json").write_text(json.dumps(memory.remembered()) + "\n")
    for old in checkpoints(run)[:-KEPT]:
        shutil.rmtree(old)


def load_checkpoint(run: Path, algorithm: TextAlgorithm) -> tuple[int, float]:
    """Bring an algorithm, newly made from the run's config, to where the run's last checkpoint left it.

    Returns:
        How many updates had been made, in how many seconds; 0 if there is no checkpoint yet.

    Raises:
        LLMGymError: The checkpoint does not fit the algorithm, or cannot be read.
    """
    for stray in (run / FOLDER).glob(".*"):  # what was being written when the run was killed
        shutil.rmtree(stray)
    found = checkpoints(run)
    if not found:
        return 0, 0.0
    folder = found[-1]
    try:
        state = json.loads((folder / "state.json").read_text())
        known = json.loads((folder / "memory.json").read_text())
        tensors = load_file(folder / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise LLMGymError(f"{folder} cannot be read ({error}); delete it to go on from an older checkpoint") from error
    if (state["format"], state["algorithm"]) != (FORMAT, type(algorithm).__name__):
        raise LLMGymError(f"{folder} was written by another version or algorithm; train again with another --out")
    policy = algorithm.policy
    policy.load_state_dict(_under("policy/", tensors))
    policy.optimizer.load_state_dict(_joined_state(state["optimizer"], tensors))
    policy.generator.set_state(tensors["generator"])
    algorithm.set_state(state["state"])
    algorithm.set_tensors(_under("algorithm/", tensors))
    memory.restore(known)
    return state["update"], state["elapsed"]


def checkpoints(run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, the oldest first."""
    return sorted(path for path in (run / FOLDER).glob("[0-9]*") if path.is_dir())


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return an optimiser's state apart: its tensors by name, and the rest as JSON."""
    state = optimizer.state_dict()
    tensors, rest = {}, []
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                rest.append([index, name, value])
    return tensors, {"groups": state["param_groups"], "rest": rest}


def _joined_state(optimizer: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for index, name, value in optimizer["rest"]:
        state.setdefault(index, {})[name] = value
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": optimizer["groups"]}
