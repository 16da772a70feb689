"""KnowledgeGraph-v0: say what a passage states, as subject, relation and object."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from llm_gym.data.hub import HubData
from llm_gym.tasks.base import Task

RELATIONS: dict[str, tuple[str, ...]] = {
    "works for": ("works at", "employed by", "employee of", "employer"),
    "leads": (
        "leader of",
        "heads",
        "head of",
        "runs",
        "directs",
        "director of",
        "president of",
        "captain of",
        "chair of",
    ),
    "founded": ("founder of", "started", "set up", "established"),
    "acquired": ("bought", "took over", "purchased"),
    "owns": ("owner of", "possesses", "has"),
    "produces": ("makes", "manufactures", "producer of"),
    "headquartered in": ("based in", "head office in", "headquarters in", "headquarters"),
    "located in": ("location", "lies in", "stands in", "is in", "situated in", "located on", "located at"),
    "part of": ("belongs to", "division of", "district of"),
    "born in": ("birth place", "place of birth", "birthplace", "was born in"),
    "died in": ("death place", "place of death"),
    "lives in": ("residence", "resident of", "resides in"),
    "married to": ("spouse", "spouse of", "wife of", "husband of", "married"),
    "parent of": ("child", "mother of", "father of"),
    "sibling of": ("sibling", "brother of", "sister of"),
    "studied at": ("educated at", "alma mater", "graduate of", "attended"),
    "member of": ("belongs to the group", "is a member of"),
    "plays for": ("team", "member of sports team"),
    "wrote": ("author of", "writer of"),
    "created": ("creator of", "invented", "designed", "painted", "built", "composed", "made by hand"),
    "won": ("award received", "winner of", "received"),
    "named after": ("is named after",),
    "flows into": ("mouth of the watercourse", "empties into", "runs into"),
}
"""The relations, and the names that count as theirs."""
SHOWN = "Lena Park was born in Oakham. She runs Park Mills, a firm that makes rope."
SHOWN_FACTS = "Lena Park | born in | Oakham\nLena Park | leads | Park Mills\nPark Mills | produces | rope"
"""The example in the prompt; without one the untrained SmolLM2-135M found no triple."""
SYMMETRIC = frozenset({"married to", "sibling of"})
CANONICAL = {name: relation for relation, names in RELATIONS.items() for name in (relation, *names)}


class Triple(NamedTuple):
    """A statement, its parts normalised."""

    subject: str
    relation: str
    object: str


def normal(name: str) -> str:
    """Return a name in lower case, without punctuation, underscores and a leading article.

    >>> normal("The_Copper Ladle."), normal('"Aarhus, Denmark"')
    ('copper ladle', 'aarhus denmark')
    """
    found = re.findall(r"\w+(?:['’&]\w+)*|&", name.replace("_", " ").replace("’", "'").casefold())
    return " ".join(found[1:] if len(found) > 1 and found[0] in ("the", "a", "an") else found)


def canonical(subject: str, relation: str, object: str) -> Triple:
    """Return the triple that three names stand for.

    A relation that is none of `RELATIONS` keeps its own name, camel case taken apart; in a symmetric one, the names
    are put in order.

    >>> canonical("The Oda", "isMarriedTo", "Finn"), canonical("Finn", "spouse", "Oda").relation
    (Triple(subject='oda', relation='is married to', object='finn'), 'married to')
    """
    name = normal(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", relation))
    name = CANONICAL.get(name, name)
    one, other = normal(subject), normal(object)
    return Triple(*((other, name, one) if name in SYMMETRIC and other < one else (one, name, other)))


def parse(text: str) -> list[Triple | None]:
    r"""Return what each line of `text` that is not blank states, None where it is not `subject | relation | object`.

    Never an error, whatever the text.

    >>> parse("Oda | founded | Tindra\nand so on\na | b")
    [Triple(subject='oda', relation='founded', object='tindra'), None, None]
    """
    triples: list[Triple | None] = []
    for line in filter(str.strip, text.splitlines()):
        parts = line.split("|")
        triple = canonical(*parts) if len(parts) == 3 else None
        triples.append(triple if triple is not None and all(triple) else None)
    return triples


class KnowledgeGraph(Task):
    """Extract subject, relation and object of what a passage states.

    ## Description
    The agent reads a passage of a few sentences and writes each fact in it as a line `subject | relation | object`.
    The bundled corpus has 104 passages written for this project about invented people, firms and places, with two to
    five triples each. The relations are `works for`, `leads`, `founded`, `acquired`, `owns`, `produces`,
    `headquartered in`, `located in`, `part of`, `born in`, `died in`, `lives in`, `married to`, `parent of`,
    `sibling of`, `studied at`, `member of`, `plays for`, `wrote`, `created`, `won`, `named after` and `flows into`;
    some other names count as these (`llm_gym.tasks.knowledge_graph.RELATIONS`).

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
    The prompt: the instruction, a worked example and a passage drawn from the split, or the one that
    `reset(options={"example": id})` names.

    ## Rewards
    0 until the text ends, then the feedback's value, by default 6 · strict F1 + 3 · partial F1 + the share of lines in
    the right format. Strict: subject, relation and object are those of a triple of the row; names are compared without
    case, punctuation and a leading article, relations by their canonical name, and `married to` and `sibling of` hold
    both ways. Partial: a line with two of the three right counts one half. Lines that are no triple, or repeat one,
    count against precision. The triples are ground truth that can be checked, so **training reads them**
    (`verifiable`); the second judge compares the text with the author's lines by chrF and embeddings.

    ## Episode End
    Terminated when the agent emits a stop token (`finish_reason` `stop`) or has written `max_new_tokens` (`length`).
    Never truncated.

    ## Information
    On reset `example` (its id) and `words_cut` (words of the passage that did not fit into the prompt). At the end
    `text`, `finish_reason`, `score`, `parts` and `example`.

    ## Arguments
    `tokenizer`, `data`, `split`, `columns`, `feedback`, `instruction`, `template`, `max_prompt_tokens`,
    `max_new_tokens`, `render_mode`; see `llm_gym.envs.vector_env.TextVectorEnv`. Data columns: `passage` and
    `triples`, a list of `[subject, relation, object]` or of strings `subject | relation | object` (in a cell of CSV,
    separated by `;`), or REBEL's string of marked triples. `data` also takes
    `web_nlg` and `rebel` where the hub can be reached.

    ## References
    Gardent et al. 2017, WebNLG; Huguet Cabot and Navigli 2021, REBEL.

    ## Version History
    - v0: first version.
    """

    name = "knowledge_graph"
    corpus = "knowledge_graph"
    required = ("passage", "triples")
    source_column = "passage"
    verifiable = True
    instruction = (
        "List the facts in this text, one a line, as subject | relation | object. Names as in the text; relations such "
        "as works for, founded, owns, leads, located in, part of, lives in, married to, wrote, created, won."
    )
    public = {
        "web_nlg": HubData("GEM/web_nlg:en", {"passage": "target", "triples": "input"}),
        "rebel": HubData("Babelscape/rebel-dataset", {"passage": "context", "triples": "triplets"}),
    }
    feedback = {"triple_f1": {"weight": 6.0}, "triple_pairs": {"weight": 3.0}, "triple_format": {"weight": 1.0}}
    judge = {"chrf": {"weight": 1 / 2}, "reference_similarity": {"weight": 1 / 2}}
    max_prompt_tokens = 320
    max_new_tokens = 80

    def messages(self, instruction: str, source: str, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return the chat that opens an episode: a worked example, then the passage."""
        return [
            {"role": "user", "content": f"{instruction}\n\n{SHOWN}"},
            {"role": "assistant", "content": SHOWN_FACTS},
            {"role": "user", "content": source},
        ]

    def plain(self, instruction: str, source: str, example: dict[str, Any]) -> str:
        """Return the prompt for a base model that has no chat template."""
        return f"{instruction}\n\nText:\n{SHOWN}\n\nFacts:\n{SHOWN_FACTS}\n\nText:\n{source}\n\nFacts:\n"

    def reference(self, example: dict[str, Any]) -> str:
        """Return the triples, a line each."""
        return "\n".join(" | ".join(triple) for triple in example["triples"])
