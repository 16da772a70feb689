"""Retrieval-v0: write a query, see what a search engine finds, and refine it."""

from __future__ import annotations

from typing import Any

from llm_gym.episode import Episode
from llm_gym.search import ENGINES, Document, shared_index
from llm_gym.tasks.base import Task

SHOWN, FIRST_WORDS = 5, 8
DOCUMENTS = "retrieval_documents"
NOTHING = "No results."
WANTED, WRITTEN = "Water keeps falling from it into the basin, even at night.", "dripping tap washer replace"
ASKING = "Write a better query, or done."


def search(example: dict[str, Any], query: str, top: int = 10) -> list[Document]:
    """Return what the row's engine finds in the row's collection."""
    index = shared_index(example.get("documents") or DOCUMENTS)
    return index.search(query, example.get("engine", ENGINES[0]), top)


def ends_search(text: str) -> bool:
    """Return whether a turn is no query but the end of the search: nothing, or the word done.

    >>> ends_search(" "), ends_search("Done."), ends_search("well done steak")
    (True, True, False)
    """
    return text.strip().strip(".!\"'").casefold() in ("", "done")


class Retrieval(Task):
    """Find documents: write a query, see the results, refine it.

    ## Description
    The agent reads what somebody needs to know, in words that the documents do not use, and writes a search query.
    It is shown the titles and first words of the five best results, and may write another query, three in all, or
    end the search with an empty turn or the word `done`. The bundled collection has 250 short documents in 25 fields
    of ten neighbours each, and 100 needs, all written for this project.

    ## Action Space
    `Discrete(V)`: the id of the next token, V = `len(tokenizer)`.

    ## Observation Space
    | key | space | what |
    |---|---|---|
    | `input_ids` | `Box(0, V-1, (C,), int32)` | prompt, earlier turns and what was written, padded on the right |
    | `roles` | `Box(0, 2, (C,), int8)` | 0 padding, 1 given (the results too), 2 written by the agent |
    | `tokens_left` | `Box(0, max_new_tokens, (1,), int32)` | tokens that may still be written in this turn |

    C = `max_prompt_tokens + 3 * max_new_tokens + 2 * 192`, for three queries and two lists of results.

    ## Starting State
    The prompt: the instruction, a worked example and a need drawn from the split, or the one that
    `reset(options={"example": id})` names.

    ## Rewards
    0 within a turn; when a turn ends, the feedback's value for it, divided by the most turns there can be (three). By
    default an episode is worth 10 · the nDCG@10 of its best query: each turn earns what its query adds to the best
    nDCG so far. Each query after the first costs 0.5, so that a refinement pays only where it gains more than .05,
    and twelve words beyond the first twelve cost 1. The relevant documents are ground truth that can be checked, so
    **training reads them** (`verifiable`), never the reference query.

    ## Episode End
    Terminated when the agent ends the search or after three queries (`finish_reason` `stop` or `length`, of the last
    turn), or when the next turn would not fit into the context (`context`). Never truncated.

    ## Information
    On reset `example` (its id) and `words_cut` (words of the need that did not fit into the prompt). When a turn ends
    `text`, `finish_reason`, `score`, `parts`, `example`, and `reply`, the list of results.

    ## Arguments
    `partner` (the engine: `bm25`, the default, `embedding` or `hybrid`; the reward follows it), `tokenizer`, `data`,
    `split`, `columns`, `feedback`, `instruction`, `template`, `max_prompt_tokens`, `max_new_tokens`, `render_mode`;
    see `llm_gym.envs.vector_env.TextVectorEnv`. Data columns: `need`, `relevant` (ids of documents), and optionally
    `query` (a reference, one query a line) and `documents`: the path of a JSONL, CSV or Parquet file with `id` (or
    `_id`), `text` and optionally `title`, from the working directory; without it the bundled collection is searched.
    BEIR keeps queries, documents and judgements apart; `python -m llm_gym.data.beir NAME FOLDER` joins them into
    `FOLDER/needs.jsonl`, which `data=` takes. Known data sets:

    | data | columns |
    |---|---|
    | `mteb/scifact` | by `llm_gym.data.beir` |
    | `mteb/nfcorpus` | by `llm_gym.data.beir` |

    ## References
    Järvelin and Kekäläinen 2002 (nDCG); Nogueira and Cho 2017 (query reformulation by reinforcement learning);
    Thakur et al. 2021, BEIR.

    ## Version History
    - v0: first version.
    """

    name = "retrieval"
    corpus = "retrieval"
    required = ("need", "relevant")
    optional = ("query", "documents")
    source_column = "need"
    reference_column = "query"
    verifiable = True
    partners = ENGINES
    partner = ENGINES[0]
    instruction = (
        "Write a short search query that finds documents for this need: a few key words that such documents would "
        "contain, nothing else."
    )
    feedback = {"ndcg": {"weight": 30.0}, "refinement": {"weight": -1.5}, "excess": {"weight": -3.0}}
    judge = {"chrf": {"weight": 1 / 2}, "reference_similarity": {"weight": 1 / 2}}
    max_prompt_tokens = 160
    max_new_tokens = 24
    max_turns = 3
    max_reply_tokens = 192

    def check(self, example: dict[str, Any]) -> str | None:
        """Return which relevant document is not in the collection, or None."""
        documents = example.get("documents") or DOCUMENTS
        missing = [name for name in example["relevant"] if name not in shared_index(documents).places]
        return f"'relevant' has {missing[0]!r}, which is no document of {documents}" if missing else None

    def messages(self, instruction: str, source: str, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return the chat that opens an episode: a worked example, then the need."""
        return [
            {"role": "user", "content": f"{instruction}\n\n{WANTED}"},
            {"role": "assistant", "content": WRITTEN},
            {"role": "user", "content": source},
        ]

    def plain(self, instruction: str, source: str, example: dict[str, Any]) -> str:
        """Return the prompt for a base model that has no chat template."""
        return f"{instruction}\n\nNeed: {WANTED}\n\nYou: {WRITTEN}\n\nNeed: {source}\n\nYou:"

    def reply(self, example: dict[str, Any], turns: list[dict[str, str]]) -> str | None:
        """Return the list of results and how to go on, or None where the agent has ended the search."""
        if ends_search(turns[-1]["text"]):
            return None
        found = search({**example, "engine": self.partner}, turns[-1]["text"], SHOWN)
        lines = [f"{rank}. {_headline(document)}" for rank, document in enumerate(found, 1)]
        return "\n".join([*(lines or [NOTHING]), ASKING])

    def reference_turn(self, example: dict[str, Any], turns: list[dict[str, str]]) -> str | None:
        """Return the author's next query, or an empty turn where there is none."""
        if "query" not in example:
            return None
        queries = example["query"].splitlines()
        asked = sum(turn["role"] == "agent" for turn in turns)
        return queries[asked] if asked < len(queries) else ""

    def episode(self, example: dict[str, Any], text: str, **fields: Any) -> Episode:
        """Return the record, whose example says which engine was asked."""
        return super().episode({**example, "engine": self.partner}, text, **fields)


def _headline(document: Document) -> str:
    words = document.text.split()
    return f"{document.title}: {' '.join(words[:FIRST_WORDS])}" + (" ..." if len(words) > FIRST_WORDS else "")
