"""`llm-gym feedback sample | corrupt | label | train | train-probe | train-attribution`: from texts to their judges."""

from __future__ import annotations

import argparse
from typing import Any

from llm_gym.cli.environment import at_temperature
from llm_gym.cli.feedback import cell
from llm_gym.cli.printing import print_json
from llm_gym.errors import LLMGymError
from llm_gym.registration import find_task
from llm_gym.tasks import Task

ROWS = 48  # texts that are written side by side


def sample_command(arguments: argparse.Namespace) -> None:
    """Let a policy write several texts about each document, and keep them."""
    task = _task(arguments.id)
    from agents import evaluate as evaluation
    from llm_gym.data import load_examples
    from llm_gym.data.files import new_file, write_jsonl

    out = new_file(arguments.out)
    source = at_temperature(evaluation.find_policy(arguments.policy), arguments.temperature)
    # Nothing is scored yet: the length of a text costs nothing.
    env_kwargs = evaluation.environment_arguments(
        arguments.id, source, arguments.data, dict(arguments.columns), feedback="length"
    )
    examples = load_examples(env_kwargs["data"], arguments.split, task, env_kwargs["columns"])
    ids = evaluation.held_out([example["id"] for example in examples], arguments.n or len(examples))
    envs = evaluation.make_envs(arguments.id, min(ROWS, arguments.k * len(ids)), arguments.split, env_kwargs)
    policy = evaluation.load_policy(source, envs)
    episodes = evaluation.evaluate(policy, envs, ids, seed=arguments.seed, texts=arguments.k).episodes
    for episode in episodes:
        episode.reward, episode.parts, episode.token_rewards = None, {}, None
    texts = [episode for start in range(len(ids)) for episode in episodes[start :: len(ids)]]
    write_jsonl(out, (episode.to_record() for episode in texts))
    _tell(arguments, {"documents": len(ids), "texts": len(texts), "out": str(out)})


def corrupt_command(arguments: argparse.Namespace) -> None:
    """Pair the references of a task's data with wrong versions of them."""
    from llm_gym.data import load_examples
    from llm_gym.data.files import new_file, write_jsonl
    from llm_gym.feedback.corruption import corrupted_pairs

    task = _task(arguments.id)
    out = new_file(arguments.out)
    examples = load_examples(arguments.data, arguments.split, task, dict(arguments.columns))
    pairs = corrupted_pairs(task, examples, arguments.seed, arguments.k)
    write_jsonl(out, pairs)
    _tell(arguments, {"documents": len({pair["id"] for pair in pairs}), "pairs": len(pairs), "out": str(out)})


def label_command(arguments: argparse.Namespace) -> None:
    """Let a scorer say which of two texts about the same source is better."""
    from llm_gym.data.files import new_file, write_jsonl
    from llm_gym.feedback import build
    from llm_gym.feedback.pairs import label, read_texts

    feedback = build(arguments.scorer)
    out = new_file(arguments.out)
    found = label(feedback, read_texts(arguments.texts))
    if not found.rows:
        raise LLMGymError(
            f"the scorer told no two texts apart ({found.ties} ties, {found.abstained} abstained from); "
            "give several different texts about each source"
        )
    write_jsonl(out, found.rows)
    _tell(arguments, {"pairs": len(found.rows), "ties": found.ties, "abstained": found.abstained, "out": str(out)})


def train_command(arguments: argparse.Namespace) -> None:
    """Train a preference model, and print how well it tells documents that it was not trained on."""
    from agents.preference import train_preference
    from agents.progress import Progress
    from llm_gym.feedback.human import read_judgements

    data = read_judgements(arguments.data, dict(arguments.columns))
    config = train_preference(
        data,
        arguments.out,
        model=arguments.model,
        epochs=arguments.epochs,
        steps=arguments.steps,
        seed=arguments.seed,
        say=Progress().say,
    )
    _print_trained("preference", config, ("updates", "documents", "comparisons"), arguments)


def train_probe_command(arguments: argparse.Namespace) -> None:
    """Train a preference model on a frozen language model, and print how well it tells documents held out."""
    from agents.probe import train_probe
    from agents.progress import Progress
    from llm_gym.feedback.human import read_judgements

    data = read_judgements(arguments.data, dict(arguments.columns))
    config = train_probe(data, arguments.out, arguments.model, arguments.layer, say=Progress().say)
    _print_trained("preference", config, ("layer", "documents", "comparisons"), arguments)


def train_attribution_command(arguments: argparse.Namespace) -> None:
    """Train an attribution model, and print how well it tells dialogues that it was not trained on."""
    from agents.attribution import train_attribution
    from agents.progress import Progress
    from llm_gym.data import load_examples

    task = find_task("TextSummary-v0")
    examples = [row for data in arguments.data for row in load_examples(data, "all", task, dict(arguments.columns))]
    pairs = [(task.source(row), task.reference(row) or "") for row in examples]
    config = train_attribution(
        pairs, arguments.out, arguments.model, arguments.epochs, arguments.seed, say=Progress().say
    )
    _print_trained("attribution", config, ("updates", "dialogues", "sentences"), arguments)


def _print_trained(
    scorer: str, config: dict[str, Any], names: tuple[str, str, str], arguments: argparse.Namespace
) -> None:
    """Print what the config of a trained judge says under these names, and how its scorer is asked for it."""
    if arguments.json:
        print_json({**config, "out": arguments.out})
        return
    held_out, (first, units, parts) = config["held_out"], names
    print(f"{first:<18} {config[first]}, {config[units]} {units}, {config[parts]} {parts}")
    print(f"held-out accuracy  {cell(held_out['accuracy'])}, {held_out[units]} {units}, 95 % interval")
    if "longer" in held_out:
        print(f"the longer wins    {cell(held_out['longer'])}")
    print(f'use it as          --feedback \'{{"{scorer}": {{"path": "{arguments.out}"}}}}\'')


def _task(env_id: str) -> Task:
    """Return a task whose texts can be compared.

    Raises:
        LLMGymError: It is a conversation, or its texts answer more than their source, which alone is compared.
    """
    task = find_task(env_id)
    if task.max_turns > 1:
        raise LLMGymError(
            f"{env_id} is a conversation, whose texts answer different lines and cannot be compared; "
            "choose a task of one turn"
        )
    if "question" in task.required:
        raise LLMGymError(
            f"{env_id} asks several questions about a source, whose answers cannot be compared; choose another task"
        )
    return task


def _tell(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    if arguments.json:
        print_json(facts)
    else:
        print(", ".join(f"{value} {name}" for name, value in facts.items() if name != "out"), "in", facts["out"])
