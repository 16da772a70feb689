"""Translation-v0: say a sentence or two in another language."""

from __future__ import annotations

from typing import Any

from llm_gym.data.hub import HubData
from llm_gym.tasks.base import Task

LANGUAGES = {
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "it": "Italian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "tr": "Turkish",
    "uk": "Ukrainian",
}
"""Name of a language by its ISO 639-1 code."""

COVERAGE = "Translation: {text}\n\nText:\n"


class Translation(Task):
    """Translate a sentence or two from English, German or French.

    ## Description
    The agent reads a text of one or two sentences and writes it in another language, token by token. The bundled
    corpus has 306 texts written and translated for this project, 102 for each of English to German, English to French
    and German to English. A row names its direction, such as `en-de`.

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
    The prompt: the instruction, which names both languages, and a text drawn from the split, or the one that
    `reset(options={"example": id})` names.

    ## Rewards
    0 until the text ends, then the feedback's value. **Training reads the reference here**: the task is verifiable,
    and chrF against the translation is the ground truth that feedback begins with. By default a weighted sum: chrF, how
    much the text's own words help a language model to predict the source (adequacy, up to a limit), whether it is
    complete, less a length far from the source's, copying the source, and repetition.

    ## Episode End
    Terminated when the agent emits a stop token (`finish_reason` `stop`) or has written `max_new_tokens` (`length`).
    Never truncated.

    ## Information
    On reset `example` (its id) and `words_cut` (words of the source that did not fit into the prompt). At the end
    `text`, `finish_reason`, `score`, `parts` and `example`.

    ## Arguments
    `tokenizer`, `data`, `split`, `columns`, `feedback`, `instruction`, `template`, `max_prompt_tokens`,
    `max_new_tokens`, `render_mode`; see `llm_gym.envs.vector_env.TextVectorEnv`. Data columns: `source`, `languages`
    (two codes such as `de-en`) and `target`, which feedback that does not read it can do without. The instruction may
    name `{from}` and `{into}`. `data` also takes `wmt14_de_en` and `opus_books_en_fr` where the hub can be reached; any
    other such data set, or the other direction, is given as
    `--columns source=translation.en target=translation.de languages==en-de`.

    ## References
    Popović 2015, chrF; Ranzato et al. 2016, MIXER (translation by reinforcement); Post 2018, sacreBLEU.

    ## Version History
    - v0: first version.
    """

    name = "translation"
    corpus = "translation"
    required = ("source", "languages")
    optional = ("target",)
    source_column = "source"
    reference_column = "target"
    verifiable = True
    public = {
        "wmt14_de_en": HubData(
            "wmt/wmt14:de-en",
            {"source": "translation.de", "target": "translation.en", "languages": "=de-en"},
        ),
        "opus_books_en_fr": HubData(
            "Helsinki-NLP/opus_books:en-fr",
            {"source": "translation.en", "target": "translation.fr", "languages": "=en-fr"},
        ),
    }
    instruction = "Translate this text from {from} into {into}. Write only the translation."
    feedback = {
        "chrf": {"weight": 10.0},
        "coverage": {"weight": 1.0, "prompt": COVERAGE, "limit": 1.0, "own_words": True},
        "complete": {"weight": 1.0},
        "length_ratio": {"weight": -2.0},
        "copying": {"weight": -1.0},
        "repetition": {"weight": -3.0},
    }
    judge = {
        "bleu": {"weight": 1 / 2},
        "ter": {"weight": 1 / 2},
    }
    max_prompt_tokens = 160
    max_new_tokens = 64

    def check(self, example: dict[str, Any]) -> str | None:
        """Return what is wrong with the languages, or None."""
        codes = example["languages"].split("-")
        if len(codes) != 2 or codes[0] == codes[1] or not set(codes) <= set(LANGUAGES):
            known = ", ".join(LANGUAGES)
            return f"languages={example['languages']!r} must be two different codes such as 'en-de', of {known}"
        return None

    def instruct(self, instruction: str, example: dict[str, Any]) -> str:
        """Return the instruction with the names of the row's languages."""
        source, target = (LANGUAGES[code] for code in example["languages"].split("-"))
        return super().instruct(instruction.replace("{from}", source).replace("{into}", target), example)
