"""TextGeneration-v0: go on with a text in a wanted tone, on a wanted topic."""

from __future__ import annotations

from typing import Any

from llm_gym.data.hub import HubData
from llm_gym.tasks.base import Task

OPENING, REST = 16, 40
"""Words of a public text that the agent is given, and how many after them are kept as the continuation."""
REVIEWS = {"pos": "enthusiastic", "neg": "disappointed"}
NEWS = {"World": "world affairs", "Sports": "sport", "Business": "business", "Sci/Tech": "science and technology"}


def opened(text: str) -> dict[str, str] | None:
    """Return the first words of a text as `prompt` and the next as `continuation`, None for a text too short to cut.

    >>> opened("word " * 20 + "end."), opened("Too short.")
    ({'prompt': 'word word word word word word word word word word word word word word word word', \
'continuation': 'word word word word end.'}, None)
    """
    words = text.replace("<br />", " ").split()
    if len(words) <= OPENING:
        return None
    return {"prompt": " ".join(words[:OPENING]), "continuation": " ".join(words[OPENING : OPENING + REST])}


def from_review(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the columns that a labelled film review gives: its own verdict is the tone."""
    cut = opened(row["text"])
    return cut and {**cut, "tone": REVIEWS[row["label"]], "topic": "films"}


def from_news(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the columns that a labelled piece of news gives: its section is the topic."""
    cut = opened(row["text"])
    return cut and {**cut, "tone": "formal", "topic": NEWS[row["label"]]}


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

    Two public data sets are known by name where the hub can be reached. Their texts are cut: the first 16 words are the
    opening, the next 40 the continuation, shorter texts are left out.

    | `data` | data set | tone | topic |
    |---|---|---|---|
    | `imdb` | `stanfordnlp/imdb` | enthusiastic or disappointed, by the review's label | films |
    | `ag_news` | `fancyzhx/ag_news` | formal: news has no label for it | the label: sport, business, ... |

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
    public = {
        "imdb": HubData("stanfordnlp/imdb", convert=from_review),
        "ag_news": HubData("fancyzhx/ag_news", convert=from_news),
    }
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
