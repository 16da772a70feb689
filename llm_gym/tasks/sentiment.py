"""SentimentMonitoring-v0: is this news good or bad, must someone act now, and why?"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from llm_gym.data.hub import HubData
from llm_gym.tasks.base import Task

LABELS = ("negative", "neutral", "positive")
ALARMS = {"yes": "alarm", "no": "no alarm"}
"""What an answer says for the column `alarm`."""
REASON_WORDS = 12  # the most that a reason may have: it is to point at words of the news, not to repeat them all


class Answer(NamedTuple):
    """What a line such as `negative | alarm | the plant leaked chlorine` says.

    Attributes:
        label: One of `LABELS`.
        alarm: `yes` or `no`, as in the data.
        reason: 1 to `REASON_WORDS` words.
    """

    label: str
    alarm: str
    reason: str


SHOWN = (
    (
        "The plant on Weir Road leaked chlorine at noon, and nobody has warned the school.",
        "negative",
        "yes",
        "leaked chlorine",
    ),
    ("Boatbuilder Hale will show its new dinghy at the fair in May.", "neutral", "no", "will show its new dinghy"),
    ("Profit at the tea merchant Osk rose by half.", "positive", "no", "rose by half"),
    ("Sales of umbrellas at Drizzle and Co fell again, as the summer was dry.", "negative", "no", "fell again"),
)
"""Examples in the prompt, without which a small model hardly ever hits the format."""

FORMAT = re.compile(r"(negative|neutral|positive) \| (no alarm|alarm) \| ([^|\n\r]*\w[^|\n\r]*)")


def parse(text: str) -> Answer | None:
    """Return what an answer says, or None if it is not exactly in the format.

    >>> parse("negative | alarm | the plant leaked chlorine")
    Answer(label='negative', alarm='yes', reason='the plant leaked chlorine')
    >>> parse("Negative, alarm: the plant leaked chlorine")
    """
    match = FORMAT.fullmatch(text.strip())
    if match is None or len(match[3].split()) > REASON_WORDS:
        return None
    return Answer(match[1], "yes" if match[2] == ALARMS["yes"] else "no", match[3].strip())


def answer(label: str, alarm: str, reason: str) -> str:
    """Return the line that says this; `parse` reads it back.

    >>> answer("negative", "yes", "the plant leaked chlorine")
    'negative | alarm | the plant leaked chlorine'
    """
    return f"{label} | {ALARMS[alarm]} | {reason}"


class SentimentMonitoring(Task):
    """Watch the news: label a piece, say whether to raise the alarm, and give the reason.

    ## Description
    The agent reads one to three sentences of financial or public news and writes one line, token by token:
    `negative | alarm | the plant leaked chlorine`. First comes the label (`positive`, `neutral` or `negative`), then
    `alarm` or `no alarm`, then the words of the news that decide it, at most twelve. The alarm is for what someone must
    act on now: bad news is often none (a profit that fell), and neutral or good news can be one (water to be boiled, a
    survivor who was heard). The bundled corpus has 302 pieces written for this project, about invented firms and
    places.

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
    The prompt: the instruction with the format, and a piece of news drawn from the split, or the one that
    `reset(options={"example": id})` names. Four worked examples, which are not in the corpus, go before it as turns of
    the chat.

    ## Rewards
    0 until the text ends, then the feedback's value. **Training reads the annotation here**: the task is verifiable,
    and label, alarm and reason are ground truth. By default the sum of: format valid (1), label right (2), reason in
    the words of the news (1), reason overlapping the annotated one (2), less the cost of the alarm:

    | cost | news with alarm | news without |
    |---|---|---|
    | `alarm` | 0 | 1 |
    | `no alarm` | 4 | 0 |
    | not in the format | 4 | 4 |

    What is not exactly in the format has nothing of the rest, so -4, the least there is.

    ## Episode End
    Terminated when the agent emits a stop token (`finish_reason` `stop`) or has written `max_new_tokens` (`length`).
    Never truncated.

    ## Information
    On reset `example` (its id) and `words_cut` (words of the news that did not fit into the prompt). At the end
    `text`, `finish_reason`, `score`, `parts` and `example`.

    ## Arguments
    `tokenizer`, `data`, `split`, `columns`, `feedback`, `instruction`, `template`, `max_prompt_tokens`,
    `max_new_tokens`, `render_mode`; see `llm_gym.envs.vector_env.TextVectorEnv`. Data columns: `news`, `label`, and
    optionally `alarm` (`yes` or `no`) and `reason` (words that stand in the news). `data` also takes
    `tweet_eval` and `twitter_financial_news` where the hub can be reached. Neither has an alarm or
    a reason, and none is made up for them: train there with `feedback={"answer_format": 1.0, "sentiment_label": 2.0,
    "reason_supported": 1.0}`.

    ## References
    Malo et al. 2014, Financial PhraseBank; Barbieri et al. 2020, TweetEval; Elkan 2001, cost-sensitive learning;
    Lei et al. 2016, rationales.

    ## Version History
    - v0: first version.
    """

    name = "sentiment_monitoring"
    corpus = "sentiment_monitoring"
    required = ("news", "label")
    optional = ("alarm", "reason")
    source_column = "news"
    verifiable = True
    public = {
        "tweet_eval": HubData("cardiffnlp/tweet_eval:sentiment", {"news": "text"}),
        "twitter_financial_news": HubData(
            "zeroshot/twitter-financial-news-sentiment",
            {"news": "text"},
            {"label": {0: "negative", 1: "positive", 2: "neutral"}},
        ),
    }
    instruction = (
        "Is this news positive, neutral or negative, must someone act right now, and which words of the news tell? "
        "Answer in one line of three parts: label | alarm or no alarm | words of the news."
    )
    feedback = {
        "answer_format": {"weight": 1.0},
        "sentiment_label": {"weight": 2.0},
        "alarm_cost": {"weight": -1.0, "missed": 4.0, "false": 1.0},
        "reason_supported": {"weight": 1.0},
        "reason_overlap": {"weight": 2.0},
    }
    judge = {
        "sentiment_order": {"weight": 1 / 4},
        "alarm_right": {"weight": 1 / 4},
        "reason_similarity": {"weight": 1 / 4},
        "chrf": {"weight": 1 / 4},
    }
    max_prompt_tokens = 320
    max_new_tokens = 32

    def check(self, example: dict[str, Any]) -> str | None:
        """Return what is wrong with label, alarm or reason, or None."""
        for column, expected in (("label", LABELS), ("alarm", tuple(ALARMS))):
            if example.get(column, expected[0]) not in expected:
                return f"{column}={example[column]!r} must be one of {', '.join(expected)}"
        reason = example.get("reason", example["news"])
        if reason.lower() not in example["news"].lower():
            return f"reason={reason[:40]!r} must stand in the news, word for word"
        return None

    def messages(self, instruction: str, source: str, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return the chat that opens an episode: the instruction, worked examples, and the news."""
        turns = [{"role": "system", "content": instruction}]
        for news, *parts in SHOWN:
            turns += [{"role": "user", "content": news}, {"role": "assistant", "content": answer(*parts)}]
        return [*turns, {"role": "user", "content": source}]

    def plain(self, instruction: str, source: str, example: dict[str, Any]) -> str:
        """Return the prompt for a base model that has no chat template."""
        shown = [f"News: {news}\nAnswer: {answer(*parts)}" for news, *parts in SHOWN]
        return "\n\n".join([instruction, *shown, f"News: {source}\nAnswer:"])

    def reference(self, example: dict[str, Any]) -> str | None:
        """Return the annotation as an answer, or None if the row lacks a part of it."""
        if "alarm" not in example or "reason" not in example:
            return None
        return answer(example["label"], example["alarm"], example["reason"])
