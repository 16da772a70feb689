"""Recommendation-v0: name things of a catalogue that somebody will like."""

from __future__ import annotations

from typing import Any

from llm_gym.choices import Choices
from llm_gym.items import shared_catalogue
from llm_gym.tasks.base import Task

MOST = 4
"""How many titles may be named."""
ITEMS = "recommendation_items"


class Recommendation(Task):
    """Recommend titles of a catalogue to somebody, by what they liked.

    ## Description
    The agent reads what somebody liked and disliked of a catalogue, with a line of comment, and names up to four
    other titles of it, a line each, best first. Only tokens of real titles are legal. The bundled catalogue has 320
    books, films, recipes and places, 80 of each, with descriptions that the agent does not see: it knows the titles,
    which say what a thing is, and what the comments say. 152 people, 38 for each kind, have a history and four
    further likes that are held out. All were written for this project.

    ## Action Space
    `Discrete(V)`: the id of the next token, V = `len(tokenizer)`. Legal are tokens that lead on to a title of the
    row's kind which is neither in the history nor named already, the line break between two titles, and a stop token
    after one: `info["action_mask"]` and `env.unwrapped.action_masks()`, int8 `(V,)`.

    ## Observation Space
    | key | space | what |
    |---|---|---|
    | `input_ids` | `Box(0, V-1, (C,), int32)` | prompt, then what was written, padded on the right |
    | `roles` | `Box(0, 2, (C,), int8)` | 0 padding, 1 given, 2 written by the agent |
    | `tokens_left` | `Box(0, max_new_tokens, (1,), int32)` | tokens that may still be written |

    C = `max_prompt_tokens + max_new_tokens`.

    ## Starting State
    The prompt: the instruction and the history of somebody drawn from the split, or of the one that
    `reset(options={"example": id})` names.

    ## Rewards
    0 until the text ends, then the feedback's value, by default 6 · the share of the held-out likes that are named +
    4 · their nDCG@4 + 4 · fit + variety. Fit compares the named items with the history by embeddings of descriptions
    and comments, variety the named items with each other. An illegal token ends the episode with −4, the least that
    this sum can be (`worst` in the task's class). The held-out likes are ground truth that can be checked, so
    **training reads them** (`verifiable`); the second judge compares genres, and descriptions with those of the
    held-out likes.

    ## Episode End
    Terminated when the agent emits a stop token (`finish_reason` `stop`), has written `max_new_tokens` (`length`) or
    something illegal (`illegal`). Never truncated.

    ## Information
    On reset `example` (its id), `words_cut` (words of the history that did not fit into the prompt) and, as after
    each step that does not end the episode, `action_mask`. At the end `text`, `finish_reason`, `score`, `parts` and
    `example`.

    ## Arguments
    `tokenizer`, `data`, `split`, `columns`, `feedback`, `instruction`, `template`, `max_prompt_tokens`,
    `max_new_tokens`, `render_mode`; see `llm_gym.envs.vector_env.TextVectorEnv`. Data columns: `liked` (a list of
    `title` or `title: comment`), `held_out` (a list of titles, best first), and optionally `disliked` (as `liked`),
    `kind` (of the titles that may be named; without it, all) and `catalogue`: the path of a JSONL, CSV or Parquet
    file with `title` and optionally `kind`, `genres` (separated by `|`) and `text`, from the working directory;
    without it the bundled one. Public data sets are tables of ratings;
    `python -m llm_gym.data.ratings NAME FOLDER` turns one into `FOLDER/users.jsonl`, which `data=` takes. It knows
    the columns of:

    | data | what |
    |---|---|
    | `ashraq/movielens_ratings` | MovieLens, on the hub |
    | `ml-latest-small/ratings.csv`, `--items ml-latest-small/movies.csv` | MovieLens, GroupLens' own files |
    | `Video_Games.jsonl`, `--items meta_Video_Games.jsonl` | Amazon Reviews 2023, the files of any category |

    ## References
    Harper and Konstan 2015, MovieLens; Hou et al. 2024, Amazon Reviews 2023; De Cao et al. 2021 (generating within a
    trie of names); Bao et al. 2023, TALLRec; Huang and Ontañón 2022 (invalid action masking).

    ## Version History
    - v0: first version.
    """

    name = "recommendation"
    corpus = "recommendation"
    required = ("liked", "held_out")
    optional = ("disliked", "kind", "catalogue")
    source_column = "liked"
    reference_column = "held_out"
    verifiable = True
    instruction = "Recommend four {kind} of our catalogue to somebody, one title a line, the best first."
    feedback = {
        "hits": {"weight": 6.0},
        "rank": {"weight": 4.0},
        "fit": {"weight": 4.0},
        "variety": {"weight": 1.0},
    }
    judge = {"held_out_genres": {"weight": 1 / 2}, "held_out_similarity": {"weight": 1 / 2}}
    worst = -4.0
    max_prompt_tokens = 288
    max_new_tokens = 64

    def check(self, example: dict[str, Any]) -> str | None:
        """Return which held-out title may not be named, or None."""
        choices = self.choices(example, [])
        legal = set(choices.texts) - choices.without
        missing = [title for title in example["held_out"] if title not in legal]
        what = f"no title of {example.get('catalogue') or ITEMS} that may be named"
        return f"'held_out' has {missing[0]!r}, which is {what}" if missing else None

    def choices(self, example: dict[str, Any], turns: list[dict[str, str]]) -> Choices:
        """Return the titles that may be named: those of the row's kind that are not in the history."""
        catalogue = shared_catalogue(example.get("catalogue") or ITEMS)
        history = map(catalogue.find, (*example["liked"], *example.get("disliked", ())))
        known = frozenset(item.title for item in history if item is not None)
        return Choices(catalogue.titles(example.get("kind", "")), MOST, known)

    def instruct(self, instruction: str, example: dict[str, Any]) -> str:
        """Return the instruction with the kind in it."""
        return super().instruct(instruction, {"kind": "titles", **example})

    def source(self, example: dict[str, Any]) -> str:
        """Return the history: liked and disliked, a line each."""
        parts = ["Liked:", *example["liked"]]
        if example.get("disliked"):
            parts += ["Disliked:", *example["disliked"]]
        return "\n".join(parts)

    def reference(self, example: dict[str, Any]) -> str:
        """Return the held-out likes, a line each, as many as may be named."""
        return "\n".join(example["held_out"][:MOST])
