"""QuestionAnswering-v0: answer from a passage, or say that it gives no answer."""

from __future__ import annotations

from typing import Any

from llm_gym.data.hub import HubData
from llm_gym.feedback.answers import ABSTENTION, abstains, bare
from llm_gym.tasks.base import Task


class QuestionAnswering(Task):
    """Answer a question from a passage, or say that it is not answerable.

    ## Description
    The agent reads a passage and a question and writes a short answer, token by token. Where the passage does not say,
    the right answer is the phrase that the instruction gives, "not answerable", and nothing else. The bundled corpus
    has 168 questions about 62 passages, all written for this project (notices, mails, science, reports, reviews,
    manuals, minutes); 44 of the questions are plausible but not answered.

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
    The prompt: the instruction, a passage and a question drawn from the split, or those of the row that
    `reset(options={"example": id})` names.

    ## Rewards
    0 until the text ends, then the feedback's value. By default a weighted sum: F1 of the answer's words against the
    best of the acceptable answers, whether it is one of them exactly, and the share of its content words that the
    passage has. Abstaining is worth 1 where there is no answer and 0 where there is one.

    **Training reads the answers here.** In other tasks the reference is one text of many that a person might have
    written, and only second judges read it. Here the answers are a ground truth that a rule can check, so this is
    reinforcement learning with verifiable reward (`verifiable = True`), and what held-out questions measure is whether
    the agent found the answer. The second judge measures the match in two other ways, by characters and by meaning.

    ## Episode End
    Terminated when the agent emits a stop token (`finish_reason` `stop`) or has written `max_new_tokens` (`length`).
    Never truncated.

    ## Information
    On reset `example` (its id) and `words_cut` (words of the passage that did not fit into the prompt; the answer may
    have been among them). At the end `text`, `finish_reason`, `score`, `parts` and `example`.

    ## Arguments
    `tokenizer`, `data`, `split`, `columns`, `feedback`, `instruction`, `template`, `max_prompt_tokens`,
    `max_new_tokens`, `render_mode`; see `llm_gym.envs.vector_env.TextVectorEnv`. Data columns: `context`, `question`
    and `answers` (a list of strings, in CSV as JSON or separated by semicolons; an empty list, `[]`, where the passage
    has no answer). Questions about one passage stay in one split. `data` also takes the names of two public data sets
    where the hub can be reached, `squad` and `squad_v2`; a file of their columns needs
    `columns={"answers": "answers.text"}`. Their longest passages need a larger `max_prompt_tokens`.

    ## References
    Rajpurkar et al. 2016, SQuAD; Rajpurkar et al. 2018, SQuAD 2.0 (unanswerable questions); Lambert et al. 2024,
    Tülu 3 (verifiable rewards).

    ## Version History
    - v0: first version.
    """

    name = "question_answering"
    corpus = "question_answering"
    required = ("context", "question", "answers")
    source_column = "context"
    instruction = (
        "Answer the question from the text with a few words of it, and nothing else. "
        f"If the text does not give the answer, write: {ABSTENTION}"
    )
    max_prompt_tokens = 288
    max_new_tokens = 24
    verifiable = True
    public = {
        "squad": HubData("rajpurkar/squad", {"answers": "answers.text"}),
        "squad_v2": HubData("rajpurkar/squad_v2", {"answers": "answers.text"}),
    }
    feedback = {
        "answer": {"weight": 4.0},
        "answer_exact": {"weight": 1.0},
        "answer_support": {"weight": 0.25},
    }
    judge = {
        "chrf": {"weight": 1 / 2},
        "reference_similarity": {"weight": 1 / 2},
    }

    def check(self, example: dict[str, Any]) -> str | None:
        """Return what is wrong with the answers, or None."""
        for answer in example["answers"]:
            if not bare(answer):
                return f"answer {answer!r} has no word that could be matched"
            if abstains(answer):
                return f"answer {answer!r} is the abstention: where the text gives no answer, the list must be empty"
        return None

    def messages(self, instruction: str, source: str, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return the chat that opens an episode."""
        return [{"role": "user", "content": _request(instruction, source, example)}]

    def plain(self, instruction: str, source: str, example: dict[str, Any]) -> str:
        """Return the prompt for a base model that has no chat template."""
        return f"{_request(instruction, source, example)}\n\nAnswer:"

    def reference(self, example: dict[str, Any]) -> str:
        """Return the first of the acceptable answers, or the abstention."""
        return next(iter(example["answers"]), ABSTENTION)


def _request(instruction: str, source: str, example: dict[str, Any]) -> str:
    return f"{instruction}\n\nText: {source}\n\nQuestion: {example['question']}"
