"""TextSummary-v0: say in a sentence or two what a document says."""

from __future__ import annotations

from llm_gym.data.hub import HubData
from llm_gym.tasks.base import Task


class TextSummary(Task):
    """Summarise a document.

    ## Description
    The agent reads a document of a few paragraphs and writes a summary of it, token by token. The bundled corpus has
    182 documents written for this project (news, science, how-to, mail, minutes, reviews, stories), each with a
    reference summary and its key facts.

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
    The prompt: the instruction and a document drawn from the split, or the one that
    `reset(options={"example": id})` names.

    ## Rewards
    0 until the text ends, then the feedback's value. By default a weighted sum, in which no part reads the reference:
    how likely a language model finds the text given the document, how much the document helps to predict it
    (grounding), similarity of meaning, that no word pair is said again (distinct), whether it is complete, less for
    being cut off, copying (by count and by share) and brevity.

    ## Episode End
    Terminated when the agent emits a stop token (`finish_reason` `stop`) or has written `max_new_tokens` (`length`).
    Never truncated.

    ## Information
    On reset `example` (its id) and `words_cut` (words of the document that did not fit into the prompt). At the end
    `text`, `finish_reason`, `score`, `parts` and `example`.

    ## Arguments
    `tokenizer`, `data`, `split`, `columns`, `feedback`, `instruction`, `template`, `max_prompt_tokens`,
    `max_new_tokens`, `render_mode`; see `llm_gym.envs.vector_env.TextVectorEnv`. Data columns: `document`, and
    optionally `summary` and `facts`. `data` also takes `cnn_dailymail` and `dialogsum` where the hub can be reached.

    ## References
    Lee et al. 2023, RLAIF; Ramamurthy et al. 2023, RL4LMs.

    ## Version History
    - v0: first version.
    """

    name = "summary"
    corpus = "text_summary"
    required = ("document",)
    optional = ("summary", "facts")
    source_column = "document"
    reference_column = "summary"
    public = {
        "cnn_dailymail": HubData("abisee/cnn_dailymail:3.0.0", {"document": "article", "summary": "highlights"}),
        "dialogsum": HubData("knkarthick/dialogsum", {"document": "dialogue"}),
    }
    instruction = "Summarize the following text in one short sentence."
    # Weights: see docs/environments.md for the attacks that they are measured against.
    feedback = {
        "likelihood": {"weight": 3.0, "ceiling": -0.8, "length_penalty": 0.7, "long": 48},
        "grounding": {"weight": 3.0, "limit": 2.0},
        "similarity": {"weight": 10.0},
        "distinct": {"weight": 15.0},
        "complete": {"weight": 1.0},
        "cut_off": {"weight": -4.0},
        "copying": {"weight": -2.0},
        "copied_share": {"weight": -5.0},
        "brevity": {"weight": -5.0, "words": 18},
    }
    judge = {
        "own_words": {
            "weight": 1.0,
            "of": {"key_facts": 1 / 3, "chrf": 1 / 3, "reference_similarity": 1 / 3},
        }
    }
