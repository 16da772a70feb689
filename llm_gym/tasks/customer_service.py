"""CustomerService-v0: settle a customer's case by the handbook, over several turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_gym.feedback.rules import occurrences, says, sentences
from llm_gym.search import Document, shared_index
from llm_gym.tasks.base import Task

DECISIONS = ("refund", "replace", "repair", "credit", "change", "cancel", "escalate", "decline")
SHOWN = 2
SEARCH, RESOLVE = "SEARCH:", "RESOLVE:"
NOTHING = "HANDBOOK\nNothing found."
INSISTS = ("So what happens now?", "That is no answer to my question.", "I have told you what I want.")
"""What a customer says, in turn, once he has repeated himself and is still not helped."""
SHOWN_CASE = (
    "My umbrella from you leaks.",
    "SEARCH: leaking umbrella",
    "HANDBOOK\nUmbrellas: Bought this year, a new one is sent (replace). Older ones give no claim (decline).",
    "I'm sorry to hear that! When did you buy it?",
    "In March.",
    "Then we send you a new one today.\nRESOLVE: replace",
)
"""The worked example of the prompt: customer, agent, handbook, agent, customer, agent."""


class Turn(NamedTuple):
    """A turn of the agent, taken apart.

    Attributes:
        query: What it looks up in the handbook, or None. Nobody hears such a turn.
        said: What the customer hears.
        decision: The decision that closes the case, or None.
    """

    query: str | None
    said: str
    decision: str | None


def taken_apart(text: str) -> Turn:
    r"""Return what a turn of the agent does.

    A line that begins with `SEARCH:` looks something up, if the turn begins with it. `RESOLVE:` and a decision close
    the case; what stands behind is not heard, and of several decisions the first counts.

    >>> taken_apart("SEARCH: broken kettle")
    Turn(query='broken kettle', said='', decision=None)
    >>> taken_apart("A new one is on its way.\nRESOLVE: replace")
    Turn(query=None, said='A new one is on its way.', decision='replace')
    """
    if text.lstrip().startswith(SEARCH):
        return Turn(text.lstrip().removeprefix(SEARCH).partition("\n")[0].strip(), "", None)
    said, _, rest = text.partition(RESOLVE)
    found = re.match(r"\W*(\w+)", rest)
    decision = found[1].lower() if found else None
    return Turn(None, said.strip(), decision if decision in DECISIONS else None)


def agent_turns(turns: Sequence[dict[str, str]]) -> list[Turn]:
    """Return the agent's turns of a conversation, taken apart."""
    return [taken_apart(turn["text"]) for turn in turns if turn["role"] == "agent"]


def look_up(example: dict[str, Any], query: str) -> list[Document]:
    """Return the passages of the row's handbook that a query is shown."""
    return shared_index(example["handbook"]).search(query, top=SHOWN)


def asks_about(said: str, words: Sequence[str]) -> bool:
    """Return whether a question or request in `said` names one of `words`.

    >>> asks_about("I am sorry. When did it arrive?", ["when"]), asks_about("I know when it came.", ["when"])
    (True, False)
    """
    questions = [part for part in sentences(said) if "?" in part or occurrences(part, "please")]
    return any(occurrences(part, word) for part in questions for word in words)


def facts_given(example: dict[str, Any], turns: Sequence[Turn]) -> list[int]:
    """Return which of the facts that the customer keeps to himself `turns` have asked for, in order."""
    heard = [turn.said for turn in turns if turn.query is None and turn.decision is None]
    facts = enumerate(example.get("asked") or ())
    return [k for k, fact in facts if any(asks_about(said, fact["about"]) for said in heard)]


def learned(example: dict[str, Any], turns: Sequence[Turn]) -> float:
    """Return the share of what the case depends on that the agent has seen: the passage, and each fact; 0 to 1."""
    queries = [turn.query for turn in turns if turn.query is not None]
    found = any(document.id == example["passage"] for query in queries for document in look_up(example, query))
    return (found + len(facts_given(example, turns))) / (1 + len(example.get("asked") or ()))


def resolved(example: dict[str, Any], turns: Sequence[Turn]) -> float:
    """Return how well the last turn closes the case, 0 to 1.

    Half for the right decision, and half for having told the customer what the handbook says follows from it; nothing
    for another decision, or none.
    """
    if not turns or turns[-1].decision != example["decision"]:
        return 0.0
    told = " ".join(turn.said for turn in turns)
    return 0.5 + 0.5 * sum(says(told, [key]) for key in example["told"]) / len(example["told"])


class CustomerService(Task):
    """Settle a customer's case by the handbook, over several turns.

    ## Description
    The agent serves the customers of a firm. In each turn it either looks something up, with a line that begins with
    `SEARCH:`, and is shown the two best passages of the firm's handbook by BM25; or it speaks to the customer. Most
    cases depend on a fact that the customer gives only when asked for it. A turn that ends with `RESOLVE:` and one of
    eight decisions (refund, replace, repair, credit, change, cancel, escalate, decline) closes the case for good.

    The bundled corpus has 108 cases and six handbooks of twelve passages, all written for this project: a mail order,
    a telephone company, a bank, an airline, a supplier of power and water, a maker of software. Each deciding passage
    has two branches and two cases, one for each branch, which are in the same split.

    The customer follows a script, or speaks through a language model (`partner="smollm2-135m"`), which words reactions
    only: which facts he gives depends on what he was asked, and no words of the agent talk him out of what he wants.
    Nothing that customer or handbook say is read as a command: `SEARCH:` and `RESOLVE:` are the agent's alone.

    ## Action Space
    `Discrete(V)`: the id of the next token, V = `len(tokenizer)`.

    ## Observation Space
    | key | space | what |
    |---|---|---|
    | `input_ids` | `Box(0, V-1, (C,), int32)` | prompt, earlier turns and what was written, padded on the right |
    | `roles` | `Box(0, 2, (C,), int8)` | 0 padding, 1 given (customer and handbook too), 2 written by the agent |
    | `tokens_left` | `Box(0, max_new_tokens, (1,), int32)` | tokens that may still be written in this turn |

    C = `max_prompt_tokens + 6 * max_new_tokens + 5 * 224`, for six turns and five replies.

    ## Starting State
    The prompt: the instruction, a worked example, and the customer's first line, of a case drawn from the split or of
    the one that `reset(options={"example": id})` names.

    ## Rewards
    0 within a turn; when a turn ends, the feedback's value for it, divided by the most turns there can be (six). By
    default a case that is closed rightly is worth up to 6 (half for the decision, half for telling what the handbook
    says), and finding the passage and the facts up to 1. Each breach of the policy costs 2: a wrong decision (but to
    escalate) and each promise of what the handbook gives in other cases only. A turn costs up to 1 for its tone, up to
    .7 for its English, .25 if it is one more than the case needs, and about 1 if a passage is read out in it. Decisions
    and key words are ground truth that can be checked, so **training reads them** (`verifiable`), never the author's
    turns.

    ## Episode End
    Terminated when the agent closes the case or after six turns (`finish_reason` `stop` or `length`, of the last
    turn), or when the next turn would not fit into the context (`context`). Never truncated.

    ## Information
    On reset `example` (its id) and `words_cut` (words of the first line that did not fit into the prompt). When a turn
    ends `text`, `finish_reason`, `score`, `parts`, `example`, and `reply`: the handbook's passages, what the customer
    answers, his thanks at the end if the case was closed as it should be, or nothing.

    ## Arguments
    `partner` (`script`, a model's name, or `ADDRESS#MODEL`), `tokenizer`, `data`, `split`, `columns`, `feedback`,
    `instruction`, `template`, `max_prompt_tokens`, `max_new_tokens`, `render_mode`; see
    `llm_gym.envs.vector_env.TextVectorEnv`. Data
    columns: `passage` (id of the passage that decides the case; cases about one passage stay in one split),
    `handbook` (path of a JSONL, CSV or Parquet file with `id`, `title` and `text`, from the working directory, or the
    name of a bundled one, such as `handbook_tern`), `company`, `situation`, `partner`, `manner`, `opening`, `again`,
    `decision`, `told` (key words that the customer must hear) and `closing`; optionally `asked` (facts, each with
    `about`, a list of words that a question for it has, and `say`), `forbidden` (phrases that would be false promises)
    and `turns` (the author's); JSONL or Parquet.

    No public data set is known by name: those of service conversations (MultiWOZ, ABCD, Bitext, τ-bench) have no
    column, or no row of one table, for the deciding passage, what must be said and what must not be promised.

    ## References
    Chen et al. 2021, ABCD (service by guidelines and actions); Yao et al. 2024, τ-bench (policies, users and tools).

    ## Version History
    - v0: first version.
    """

    name = "customer_service"
    corpus = "customer_service"
    required = (
        "passage",
        "handbook",
        "company",
        "situation",
        "partner",
        "manner",
        "opening",
        "again",
        "decision",
        "told",
        "closing",
    )
    optional = ("asked", "forbidden", "turns")
    source_column = "opening"
    verifiable = True
    instruction = (
        "You serve the customers of {company}. In each turn, either look something up in the handbook with one line "
        "such as 'SEARCH: lost parcel', or speak to the customer in one or two friendly sentences. Ask for the facts "
        "that the handbook makes a case depend on, and promise nothing else than it does. To close the case, say what "
        "happens now and end with 'RESOLVE:' and one of: " + ", ".join(DECISIONS) + "."
    )
    # Weights: see docs/environments.md for what they are measured against.
    feedback = {
        "resolution": {"weight": 36.0},
        "inquiry": {"weight": 6.0},
        "breaches": {"weight": -12.0},
        "rudeness": {"weight": -6.0},
        "speech": {"weight": 1.0, "ceiling": -4.0, "prompt": "{source}\n\n{said}\n\nAnswer:"},
        "recital": {"weight": -1.0},
        "repetition": {"weight": -3.0},
        "cut_off": {"weight": -2.0},
        "extra_turns": {"weight": -1.5},
    }
    judge = {"chrf": {"weight": 1 / 2}, "reference_similarity": {"weight": 1 / 2}}
    max_prompt_tokens = 384
    max_new_tokens = 72
    max_turns = 6
    max_reply_tokens = 224

    def check(self, example: dict[str, Any]) -> str | None:
        """Return what is wrong with the decision, the passage or the facts, or None."""
        if example["decision"] not in DECISIONS:
            return f"'decision' is {example['decision']!r}; expected one of {', '.join(DECISIONS)}"
        if example["passage"] not in shared_index(example["handbook"]).places:
            return f"'passage' is {example['passage']!r}, which is no passage of {example['handbook']}"
        for number, fact in enumerate(example.get("asked") or (), 1):
            words, said = fact.get("about"), fact.get("say")
            if not isinstance(said, str) or not said.strip():
                return f"fact {number} of 'asked' must have 'say', a string, not {said!r}"
            if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip() for w in words):
                return f"fact {number} of 'asked' must have 'about', a list of strings, not {words!r}"
        return None

    def messages(self, instruction: str, source: str, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return the chat that opens an episode: the instruction, a worked example, the customer's first line."""
        first, *others = SHOWN_CASE
        said = [f"{instruction}\n\n{first}", *others, source]
        return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(said)]

    def plain(self, instruction: str, source: str, example: dict[str, Any]) -> str:
        """Return the prompt for a base model that has no chat template."""
        lines = [f"{('Partner', 'You')[k % 2]}: {text}" for k, text in enumerate((*SHOWN_CASE, source))]
        return "\n\n".join([instruction, *lines, "You:"])

    def opening(self, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return the customer's first line."""
        return [{"role": "partner", "text": example["opening"]}]

    def speaker(self, turns: list[dict[str, str]]) -> str:
        """Return `handbook` where the agent looks something up, else `partner`."""
        return "partner" if taken_apart(turns[-1]["text"]).query is None else "handbook"

    def reply(self, example: dict[str, Any], turns: list[dict[str, str]]) -> str | None:
        """Return what the handbook has, or what the customer says by the script; None where the case is closed."""
        *_, last = said = agent_turns(turns)
        if last.query is not None:
            return _passages(look_up(example, last.query))
        if last.decision:
            return None
        if facts := facts_given(example, [last]):
            return " ".join(example["asked"][k]["say"] for k in facts)
        idle = sum(turn.query is None and not facts_given(example, [turn]) for turn in said)
        return example["again"] if idle == 1 else INSISTS[idle % len(INSISTS)]

    def farewell(self, example: dict[str, Any], turns: list[dict[str, str]]) -> list[dict[str, str]]:
        """Return the customer's thanks, if the case was closed as it should be."""
        content = resolved(example, agent_turns(turns)) == 1
        return [{"role": "partner", "text": example["closing"]}] if content else []

    def reference(self, example: dict[str, Any]) -> str | None:
        """Return the turns of the case's author, a line each."""
        return "\n".join(example["turns"]) if "turns" in example else None

    def reference_turn(self, example: dict[str, Any], turns: list[dict[str, str]]) -> str | None:
        """Return the author's next turn, the last one again once they are used up."""
        if "turns" not in example:
            return None
        return example["turns"][min(len(agent_turns(turns)), len(example["turns"]) - 1)]


def _passages(found: Sequence[Document]) -> str:
    return "\n".join(["HANDBOOK", *(f"{document.title}: {document.text}" for document in found)]) if found else NOTHING
