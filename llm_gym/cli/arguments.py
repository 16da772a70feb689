"""What the command line takes."""

from __future__ import annotations

import argparse
import math
from typing import Any, NoReturn

import yaml

from llm_gym.cli import benchmark, pipeline
from llm_gym.cli import commands as run
from llm_gym.cli.environment import DEFAULT_POLICY
from llm_gym.cli.feedback import validate_command
from llm_gym.cli.play import play_command
from llm_gym.errors import LLMGymError

ALGOS = ("grpo", "rloo", "reinforce", "ppo", "a2c", "sft", "dpo", "distillation", "dqn", "sb3-ppo", "sb3-a2c")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LLMGymError(f"{message}; see '{self.prog} --help'")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; the function of the command is in `command`."""
    parser = _Parser(prog="llm-gym", description="Language tasks as Gymnasium environments.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    listing = _command(commands, "list", run.list_command, "show environments, models and scorers")
    listing.add_argument("--columns", action="store_true", help="show the columns of each environment's data instead")

    fetching = _command(commands, "fetch", run.fetch_command, "download models ahead of time")
    fetching.add_argument("names", nargs="*", metavar="NAME", help="models of the catalogue (default: all)")

    training = _command(commands, "train", run.train_command, "train a policy and report on it")
    _environment(training, optional=True)
    # No defaults here: `--resume` takes none of these, not even one that equals what would have been the default.
    training.add_argument("--algo", metavar="NAME", help=f"one of {', '.join(ALGOS)} (default: grpo)")
    training.add_argument(
        "--hyperparams",
        nargs="+",
        action="extend",
        type=_hyperparam,
        default=[],
        metavar="KEY:VALUE",
        help="other hyper-parameters than the algorithm's own, such as learning_rate:lin_3e-4 policy_kwargs.lora:8",
    )
    training.add_argument(
        "--policy", metavar="NAME|FOLDER", help=f"model name, model folder or run folder (default: {DEFAULT_POLICY})"
    )
    _temperature(training)
    length = training.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive(int), metavar="N", help="training updates")
    length.add_argument("--minutes", type=_positive(float), metavar="M", help="minutes of training (default: 10)")
    length.add_argument("--tokens", type=_positive(int), metavar="N", help="tokens to write in training")
    training.add_argument("--seed", type=_seed, metavar="SEED", help="default: 0")
    training.add_argument(
        "--early-stop", action="store_true", help="stop once training feedback rises while the second judge falls"
    )
    training.add_argument(
        "--chain",
        metavar="FILE",
        help="YAML of stages (algo; steps, minutes or tokens; hyperparams), each going on from the last",
    )
    training.add_argument("--out", metavar="DIR", help="run folder (default: runs/ID-ALGO-SEED)")
    training.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run or a chain that was interrupted; takes a length of a run, no more",
    )

    evaluating = _command(commands, "evaluate", run.evaluate_command, "let a policy write texts and score them")
    _environment(evaluating)
    evaluating.add_argument("--policy", default=DEFAULT_POLICY, metavar="NAME|RUN", help="model name or run folder")
    evaluating.add_argument("-n", type=_positive(int), metavar="N", help="documents (default: 48)")
    evaluating.add_argument("--seed", type=_seed, default=0, help="of sampling (default: 0)")
    evaluating.add_argument(
        "--best-of", type=_positive(int), default=1, metavar="N", help="write N texts for each and keep the best"
    )
    mode = evaluating.add_mutually_exclusive_group()
    mode.add_argument("--greedy", action="store_true", help="take the likeliest token each time")
    mode.add_argument("--sample", action="store_true", help="sample, as in training (default)")
    _temperature(evaluating)
    evaluating.add_argument(
        "--split",
        choices=("train", "validation", "test", "all"),
        help="default: test; all for a --data file that the policy was not trained on",
    )

    playing = _command(commands, "play", play_command, "write yourself, or watch a policy, and see the score")
    _environment(playing)
    playing.add_argument("--example", metavar="ID", help="the example (default: drawn by the seed)")
    playing.add_argument("--policy", metavar="NAME|RUN", help="watch this policy instead of writing yourself")
    playing.add_argument("--tokenizer", metavar="NAME", help=f"in which you write (default: {DEFAULT_POLICY})")
    playing.add_argument("--split", choices=("train", "validation", "test", "all"), default="all", help="default: all")
    playing.add_argument("--seed", type=_seed, default=0, help="default: 0")

    scoring = _command(commands, "score", run.score_command, "score texts that exist already")
    _environment(scoring, data=False)
    scoring.add_argument(
        "--input", required=True, metavar="FILE", help="rows with the task's columns and the 'text' to be scored"
    )

    _feedback(commands)
    _benchmark(commands)
    return parser


def _benchmark(commands: Any) -> None:
    """Add the commands that compare agents."""
    running = _command(commands, "benchmark", benchmark.benchmark_command, "run agents against each other, and report")
    running.add_argument(
        "--agents",
        nargs="+",
        metavar="AGENT",
        help="algorithms, which are trained; random, greedy, best-of-N; a run, a model, http://host/v1#model, or "
        "module:Class (untrained and reference always take part)",
    )
    running.add_argument("--envs", nargs="+", metavar="ID", help="environments")
    running.add_argument("--seeds", type=_positive(int), metavar="N", help="runs of each agent (default: 3)")
    running.add_argument("--policy", metavar="NAME|RUN", help=f"what training starts from (default: {DEFAULT_POLICY})")
    length = running.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_positive(float), metavar="M", help="of training a cell (default: 10)")
    length.add_argument("--tokens", type=_positive(int), metavar="N", help="to write in the training of a cell")
    running.add_argument("--preset", metavar="NAME", help="smoke (minutes), cpu (hours) or full (days)")
    running.add_argument("--out", metavar="DIR", help="folder; one that was begun is gone on with, and may grow")
    commands = running.add_subparsers(title="commands", metavar="COMMAND")

    # A flag of the command above that is not given here keeps its value.
    inner = {"default": argparse.SUPPRESS}
    comparing = _command(commands, "compare", benchmark.compare_command, "say what changed from one to another", inner)
    comparing.add_argument("first", metavar="A", help="folder of a benchmark")
    comparing.add_argument("second", metavar="B", help="folder of another")

    reporting = _command(
        commands, "report", benchmark.report_command, "write the report anew, and print its tables", inner
    )
    reporting.add_argument("folder", metavar="DIR", help="folder of a benchmark, or a results.json of one")
    reporting.add_argument("--markdown", action="store_true", help="print the tables as Markdown")


def _feedback(commands: Any) -> None:
    """Add the commands about scorers themselves."""
    summary = "measure scorers, and train one from preferences"
    group = commands.add_parser("feedback", help=summary, description=summary, allow_abbrev=False)
    commands = group.add_subparsers(title="commands", required=True, metavar="COMMAND")

    validating = _command(commands, "validate", validate_command, "measure a scorer's agreement with people")
    validating.add_argument("scorer", metavar="SCORER", help="a scorer's name, or JSON of names and weights")
    validating.add_argument("--data", required=True, metavar="FILE", help="people's ratings or preferences")
    _columns(validating, "the column A, such as candidate, is the file's column B")
    validating.add_argument("-n", type=_positive(int), metavar="N", help="documents, evenly spaced (default: all)")

    sampling = _command(commands, "sample", pipeline.sample_command, "let a policy write texts to be compared")
    _examples(sampling)
    sampling.add_argument("--policy", default=DEFAULT_POLICY, metavar="NAME|RUN", help="model name or run folder")
    sampling.add_argument("-k", type=_positive(int), default=4, help="texts for each document (default: 4)")
    sampling.add_argument("-n", type=_positive(int), metavar="N", help="documents, evenly spaced (default: all)")
    _temperature(sampling)

    corrupting = _command(commands, "corrupt", pipeline.corrupt_command, "pair references with wrong versions of them")
    _examples(corrupting)
    corrupting.add_argument(
        "-k", type=_positive(int), default=1, help="wrong versions of each kind and reference, at most (default: 1)"
    )

    labelling = _command(commands, "label", pipeline.label_command, "let a scorer say which of two texts is better")
    labelling.add_argument("scorer", metavar="SCORER", help="a scorer's name, or JSON of names and weights")
    labelling.add_argument(
        "--texts", required=True, nargs="+", metavar="FILE", help="what `sample` wrote, or rows of source and text"
    )
    labelling.add_argument("--out", required=True, metavar="FILE", help="the pairs, JSONL")

    training = _command(commands, "train", pipeline.train_command, "train a preference model from pairs or ratings")
    training.add_argument("--data", required=True, metavar="FILE", help="pairs or people's ratings, as for `validate`")
    _columns(training, "the column A, such as chosen, is the file's column B")
    training.add_argument("--model", default=DEFAULT_POLICY, metavar="NAME", help=f"default: {DEFAULT_POLICY}")
    training.add_argument("--epochs", type=_positive(int), default=3, metavar="N", help="default: 3")
    training.add_argument("--steps", type=_positive(int), metavar="N", help="at most so many updates")
    training.add_argument("--seed", type=_seed, default=0, help="default: 0")
    training.add_argument("--out", required=True, metavar="DIR", help="folder of the model")

    summary = "train a preference model that leaves the language model as it is, from pairs or ratings"
    probing = _command(commands, "train-probe", pipeline.train_probe_command, summary)
    probing.add_argument("--data", required=True, metavar="FILE", help="pairs or people's ratings, as for `validate`")
    _columns(probing, "the column A, such as chosen, is the file's column B")
    probing.add_argument("--model", default=DEFAULT_POLICY, metavar="NAME", help=f"default: {DEFAULT_POLICY}")
    probing.add_argument("--layer", type=_positive(int), metavar="N", help="default: three fifths of the way up")
    probing.add_argument("--out", required=True, metavar="DIR", help="folder of the model")

    summary = "train a model that tells who said what, from dialogues and texts about them"
    attributing = _command(commands, "train-attribution", pipeline.train_attribution_command, summary)
    attributing.add_argument(
        "--data", required=True, nargs="+", metavar="FILE", help="rows of a dialogue, `document`, and a `summary` of it"
    )
    _columns(attributing, "the column A, such as document, is the file's column B")
    attributing.add_argument("--model", default="minilm-l6", metavar="NAME", help="default: minilm-l6")
    attributing.add_argument("--epochs", type=_positive(int), default=3, metavar="N", help="default: 3")
    attributing.add_argument("--seed", type=_seed, default=0, help="default: 0")
    attributing.add_argument("--out", required=True, metavar="DIR", help="folder of the model")


def _examples(parser: argparse.ArgumentParser) -> None:
    """Add what says which documents of an environment are taken, and where what is made of them goes."""
    parser.add_argument("id", metavar="ID", help="environment, such as TextSummary-v0")
    parser.add_argument("--data", metavar="FILE", help="JSONL, CSV or Parquet (default: the bundled corpus)")
    _columns(parser, "the task's column A is the file's column B")
    parser.add_argument(
        "--split", choices=("train", "validation", "test", "all"), default="train", help="default: train"
    )
    parser.add_argument("--seed", type=_seed, default=0, help="default: 0")
    parser.add_argument("--out", required=True, metavar="FILE", help="what is written, JSONL")


def _command(
    commands: Any, name: str, function: Any, summary: str, json: dict[str, Any] | None = None
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print JSON for machines", **(json or {}))
    parser.set_defaults(command=function)
    return parser


def _environment(parser: argparse.ArgumentParser, data: bool = True, optional: bool = False) -> None:
    count = {"nargs": "?"} if optional else {}
    parser.add_argument("id", metavar="ID", help="environment, such as TextSummary-v0", **count)  # type: ignore[arg-type]
    if data:
        parser.add_argument("--data", metavar="FILE", help="JSONL, CSV or Parquet (default: the bundled corpus)")
        parser.add_argument(
            "--partner", metavar="NAME", help="who answers in a dialogue: script, a model's name, or ADDRESS#MODEL"
        )
        parser.add_argument(
            "--instruction", metavar="TEXT", help="what the agent is asked to do; {column} is the row's value"
        )
    _columns(parser, "the task's column A is the file's column B")
    parser.add_argument("--feedback", metavar="SPEC", help="a scorer's name, or JSON of names and weights")


def _columns(parser: argparse.ArgumentParser, summary: str) -> None:
    parser.add_argument("--columns", nargs="+", action="extend", type=_column, default=[], metavar="A=B", help=summary)


def _temperature(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--temperature",
        type=_positive(float),
        metavar="T",
        help="of sampling; below 1 a weak model makes more sense from the start (default: the run's, or 1)",
    )


def _positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = _number(kind, text)
        if value is None or not math.isfinite(value) or value <= 0:
            raise argparse.ArgumentTypeError(f"{text!r} is not a positive {'integer' if kind is int else 'number'}")
        return value

    return parse


def _seed(text: str) -> int:
    value = _number(int, text)
    if value is None or not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to 2**32 - 1")
    return value


def _number(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        return None


def _hyperparam(text: str) -> tuple[str, Any]:
    key, colon, value = text.partition(":")
    if not (key and colon and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY:VALUE, such as learning_rate:1e-4")
    number = _number(float, value)
    return key, number if number is not None and _number(int, value) is None else _yaml(value)


def _yaml(text: str) -> Any:
    """Return a value written as YAML; a sentence with a colon or braces in it is itself."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) and not text.startswith("{") else value


def _column(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form A=B, such as document=dialogue")
    return name, column
