"""TextGeneration-v0: go on with a text in a wanted tone, on a wanted topic."""

from __future__ import annotations

from typing import Any

from llm_gym.tasks.base import Task


class TextGeneration(Task):
    """Continue a prompt in a wanted tone and topic.

    ## Description
    The agent reads the opening of a text and goes on with it, token by token, in the tone and on the topic that the
    row names. The bundled corpus has 160 openings written for this project, two for each pair of eight tones and ten
    topics, each with a continuation.

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
    The prompt: the instruction and an opening drawn from the split, or the one that
    `reset(options={"example": id})` names.

    ## Rewards
    0 until the text ends, then the feedback's value. By default a weighted sum: tone by a language model and topic
    by an embedding model (zero-shot, against the other tones and topics), how likely a language model finds the text
    after the opening, whether it is complete, less copying, repetition and brevity. No part reads the continuation of
    the corpus.

    ## Episode End
    Terminated when the agent emits a stop token (`finish_reason` `stop`) or has written `max_new_tokens` (`length`).
    Never truncated.

    ## Information
    On reset `example` (its id) and `words_cut` (words of the opening that did not fit into the prompt). At the end
    `text`, `finish_reason`, `score`, `parts` and `example`.

    ## Arguments
    `tokenizer`, `data`, `split`, `columns`, `feedback`, `instruction`, `template`, `max_prompt_tokens`,
    `max_new_tokens`, `render_mode`; see `llm_gym.envs.vector_env.TextVectorEnv`. Data columns: `prompt`, `tone`,
    `topic`, and optionally `continuation`. A user's own tones and topics are compared with those of the corpus.

    No public data set is known by name: those with tones or topics (IMDB, AG News, GoEmotions) have whole texts and no
    openings that a text of another tone could go on from; cut them first.

    ## References
    Ramamurthy et al. 2023, RL4LMs (text continuation); Keskar et al. 2019, CTRL.

    ## Version History
    - v0: first version.
    """

    name = "generation"
    corpus = "text_generation"
    required = ("prompt", "tone", "topic")
    optional = ("continuation",)
    source_column = "prompt"
    reference_column = "continuation"
    instruction = "Continue this text with one or two short sentences in a {tone} tone. They must be about {topic}."
    max_prompt_tokens = 128
    max_new_tokens = 80
    feedback = {
        "tone": {"weight": 4.0},
        "topic": {"weight": 4.0},
        "likelihood": {"weight": 1.0, "ceiling": -2.5, "prompt": "{source}"},
        "complete": {"weight": 3.0},
        "copying": {"weight": -1.5, "run": 4},
        "repetition": {"weight": -3.0},
        "brevity": {"weight": -2.0},
    }
    judge = {
        "judged_topic": {"weight": 1 / 3},
        "judged_tone": {"weight": 1 / 3},
        "reference_similarity": {"weight": 1 / 3},
    }

    def plain(self, instruction: str, source: str, example: dict[str, Any]) -> str:
        """Return the prompt for a base model: a text to be gone on with."""
        return f"{instruction}\n\n{source}"
