"""Story-v0: write a very short story from a premise."""

from __future__ import annotations

from typing import Any

from llm_gym.data.hub import HubData
from llm_gym.feedback.rules import words
from llm_gym.tasks.base import Task


class Story(Task):
    """Write a very short story from a premise, with required elements and an ending.

    ## Description
    The agent reads a premise of a sentence or two and three things that must occur, and writes a story of some seventy
    words, token by token. The bundled corpus has 100 premises written for this project, of many genres, places and
    times, each with a story by its author.

    ## Action Space
    `Discrete(V)`: the id of the next token, V = `len(tokenizer)`.

    ## Observation Space
    | key | space | what |
    |---|---|---|
    | `input_ids` | `Box(0, V-1, (C,), int32)` | prompt, then what was written, padded on the right |
    | `roles` | `Box(0, 2, (C,), int8)` | 0 padding, 1 given, 2 written by the agent |
    | `tokens_left` | `Box(0, max_new_tokens, (1,), int32)` | tokens that may still be written |

    C = `max_prompt_tokens + max_new_tokens`.

    ## Starting State
    The prompt: a premise drawn from the split, or the one that `reset(options={"example": id})` names, the
    instruction, and the elements.

    ## Rewards
    0 until the text ends, then the feedback's value. By default a weighted sum, in which no part reads the author's
    story: the share of elements named, coherence (how much each sentence helps a language model to predict the next,
    against one that says nothing), how likely it finds the text after the premise, similarity to the premise, whether
    an ending was reached, less copying of the premise, repetition and brevity.

    ## Episode End
    Terminated when the agent emits a stop token (`finish_reason` `stop`) or has written `max_new_tokens` (`length`).
    Never truncated.

    ## Information
    On reset `example` (its id) and `words_cut` (words of the premise that did not fit into the prompt). At the end
    `text`, `finish_reason`, `score`, `parts` and `example`.

    ## Arguments
    `tokenizer`, `data`, `split`, `columns`, `feedback`, `instruction`, `template`, `max_prompt_tokens`,
    `max_new_tokens`, `render_mode`; see `llm_gym.envs.vector_env.TextVectorEnv`. Data columns: `premise`, and
    optionally `elements` (a list of short strings; without them nothing is required) and `story`. `data` also takes
    the names of two public data sets where the hub can be reached, `writingprompts` and `rocstories`, whose rows have
    no elements.

    ## References
    Fan et al. 2018, Hierarchical neural story generation (WritingPrompts); Mostafazadeh et al. 2016, ROCStories;
    Lin et al. 2020, CommonGen (required concepts).

    ## Version History
    - v0: first version.
    """

    name = "story"
    corpus = "story"
    required = ("premise",)
    optional = ("elements", "story")
    source_column = "premise"
    reference_column = "story"
    instruction = "Write a very short story of about seventy words, with an ending, from this premise."
    max_prompt_tokens = 160
    max_new_tokens = 120
    public = {
        "writingprompts": HubData("euclaise/writingprompts", {"premise": "prompt"}),
        "rocstories": HubData("Ximing/ROCStories", {"premise": "prompt", "story": "continuation"}),
    }
    # Weights: see docs/environments.md for what they are measured against.
    feedback = {
        "elements": {"weight": 6.0},
        "coherence": {"weight": 6.0},
        "likelihood": {"weight": 1.5, "ceiling": -3.5, "prompt": "{source}"},
        "similarity": {"weight": 3.0},
        "complete": {"weight": 3.0},
        "copying": {"weight": -1.5},
        "repetition": {"weight": -6.0},
        "brevity": {"weight": -6.0, "words": 50},
    }
    judge = {
        "key_facts": {"weight": 1 / 3},
        "chrf": {"weight": 1 / 3},
        "reference_similarity": {"weight": 1 / 3},
    }

    def check(self, example: dict[str, Any]) -> str | None:
        """Return what is wrong with the elements, or None."""
        for element in example.get("elements", ()):
            if not 1 <= len(words(element)) <= 4:
                return f"element {element!r} must be a thing to be named, of one to four words"
        return None

    def messages(self, instruction: str, source: str, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return the chat that opens an episode."""
        return [{"role": "user", "content": _request(instruction, source, example)}]

    def plain(self, instruction: str, source: str, example: dict[str, Any]) -> str:
        """Return the prompt for a base model that has no chat template."""
        return f"{_request(instruction, source, example)}\n\nStory:"


def _request(instruction: str, source: str, example: dict[str, Any]) -> str:
    elements = ", ".join(example.get("elements", ()))
    return f"Premise: {source}\n\n{instruction}" + (f" Use these words: {elements}." if elements else "")
