"""The transition function, over arrays: N episodes of one task side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from llm_gym import feedback as feedbacks
from llm_gym.choices import Constraint
from llm_gym.data import load_examples
from llm_gym.envs.conversation import ReplyTemplate
from llm_gym.envs.limits import Limits
from llm_gym.envs.partner import make_partner
from llm_gym.envs.prompts import Prompt, PromptBuilder
from llm_gym.envs.render import colour, render_text
from llm_gym.envs.scoring import Ended, reward
from llm_gym.envs.spaces import Vocabulary
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, RenderModeError, positive
from llm_gym.feedback.memory import Memory
from llm_gym.models.load import fingerprint, load_tokenizer, stop_ids
from llm_gym.tasks import load_task

GIVEN, WRITTEN = 1, 2  # `roles`; 0 is padding


class TextVectorEnv(VectorEnv):
    """N token-level episodes of one task, held in preallocated arrays.

    A step appends one token to every running row. A turn ends when the agent emits a stop token or has written
    `max_new_tokens`; in a conversation the partner then answers, until its goals are settled. Everything that ends
    together is scored in one call of the feedback.

    Where the task constrains what may be written (`Task.choices`), a token outside of it ends the episode, with
    `finish_reason` `illegal` and at most the task's `worst` as score; `info["action_mask"]`, int8 `(N, V)`, and
    `action_masks` say what is legal.

    Observations are a dict of copies: `input_ids` int32 `(N, C)`, `roles` int8 `(N, C)` (0 padding, 1 given,
    2 written by the agent) and `tokens_left` int32 `(N, 1)`; C = `max_prompt_tokens + max_turns * max_new_tokens`, and
    in a conversation the task's `max_reply_tokens` for each reply.

    Args:
        task: The task, as `module:class`.
        num_envs: N.
        autoreset_mode: NEXT_STEP, SAME_STEP or DISABLED, the enum or its value. Under DISABLED a finished row
            ignores its action, which must still be a token id, gets reward 0 and stays terminated until
            `reset(options={"reset_mask": ...})`.
        tokenizer: Name of the tokenizer: a catalogue name, a hub id or a local folder.
        data: File of examples; None for the task's bundled corpus.
        split: `train`, `validation`, `test` or `all`.
        columns: The task's column names mapped to the file's.
        feedback: Spec of the training feedback; None for the task's default.
        instruction: What the agent is asked to do; None for the task's.
        template: `chat` or `plain`.
        max_prompt_tokens: Longest prompt; a longer source is cut and `info["words_cut"]` says by how much.
        max_new_tokens: Cap of a turn.
        partner: Who answers in a conversation: `script` (the default), the name of a causal language model, or an
            address and a model, such as `http://127.0.0.1:8000/v1#my-model`.
        render_mode: `ansi`, `human` or None.

    Raises:
        LLMGymError: A bad argument, with the remedy.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"], "render_fps": 8}

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        tokenizer: str = "smollm2-135m",
        data: str | None = None,
        split: str = "train",
        columns: dict[str, str] | None = None,
        feedback: str | dict[str, Any] | None = None,
        instruction: str | None = None,
        template: str = "chat",
        max_prompt_tokens: int | None = None,
        max_new_tokens: int | None = None,
        partner: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task = load_task(task)
        self.num_envs = positive("num_envs", num_envs)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise RenderModeError(f"render_mode={render_mode!r} is unknown; expected 'ansi', 'human' or None")
        self.render_mode = render_mode
        self.max_prompt_tokens = positive(
            "max_prompt_tokens", self.task.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens
        )
        self.max_new_tokens = positive(
            "max_new_tokens", self.task.max_new_tokens if max_new_tokens is None else max_new_tokens
        )

        if partner is not None and self.task.max_turns == 1:
            raise LLMGymError(
                f"partner={partner!r} does not apply: {self.task.name!r} is no conversation; leave it out"
            )
        self.context = self.max_prompt_tokens + self.task.max_turns * self.max_new_tokens
        self.context += (self.task.max_turns - 1) * self.task.max_reply_tokens

        self.feedback = feedbacks.build(self.task.feedback if feedback is None else feedback)
        self.examples = load_examples(data, split, self.task, columns)
        self._index = {example["id"]: i for i, example in enumerate(self.examples)}
        self.tokenizer = load_tokenizer(tokenizer)
        self.prompt_builder = PromptBuilder(
            self.task,
            self.tokenizer,
            self.task.instruction if instruction is None else instruction,
            template,
            self.max_prompt_tokens,
        )
        self._prompts = Memory()  # of many rows, the last ones
        self.partner = make_partner(partner, self.task)
        self._reply_template = ReplyTemplate(self.tokenizer, template) if self.task.max_turns > 1 else None
        self._build_spaces(tokenizer)
        self._allocate()

    def _build_spaces(self, tokenizer: str) -> None:
        size, context = len(self.tokenizer), self.context
        self._stops = np.zeros(size, bool)
        stops = stop_ids(tokenizer, self.tokenizer)
        self._stops[list(stops)] = True
        digest = fingerprint(self.tokenizer)
        constraint = Constraint(digest) if self.task.constrained else None
        self._limits: Limits | None = None
        if constraint is not None:
            self._limits = Limits(self.task, self.tokenizer, stops, constraint, self.num_envs)
        self.single_action_space = Vocabulary(size, tokenizer, digest, stops, constraint)
        self.single_observation_space = spaces.Dict(
            {
                "input_ids": spaces.Box(0, size - 1, (context,), np.int32),
                "roles": spaces.Box(0, WRITTEN, (context,), np.int8),
                "tokens_left": spaces.Box(0, self.max_new_tokens, (1,), np.int32),
            }
        )
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def _allocate(self) -> None:
        n, context = self.num_envs, self.context
        self._ids = np.zeros((n, context), np.int32)
        self._roles = np.zeros((n, context), np.int8)
        self._left = np.zeros((n, 1), np.int32)
        self._log_probs = np.full((n, context), np.nan, np.float32)
        self._length = np.zeros(n, np.int64)
        self._prompt_length = np.zeros(n, np.int64)
        self._turn_start = np.zeros(n, np.int64)
        self._turn = np.zeros(n, np.int64)
        self._turns: list[list[dict[str, str]]] = [[] for _ in range(n)]
        self._past: list[list[Episode]] = [[] for _ in range(n)]  # the turns of the episode so far
        self._unscored: list[Ended] = []
        self._example = np.zeros(n, np.int64)
        self._done = np.ones(n, bool)
        self._started = False
        self.generators: list[np.random.Generator | None] = [None] * n
        self.episodes: list[Episode | None] = [None] * n
        """The last finished episode of each row: the whole record behind `info`."""

    @property
    def done(self) -> np.ndarray:
        """Which rows have ended, bool `(N,)`."""
        return self._done.copy()

    @property
    def example_ids(self) -> list[str]:
        """The ids that `reset(options={"example": ...})` takes."""
        return list(self._index)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: Row i is seeded with `seed + i`, or with the i-th of a sequence.
            options: `{"example": id}` or one id a row (None: drawn) chooses the examples; `{"reset_mask": mask}`,
                bool `(N,)`, resets these rows only. What ended in a row and has not been scored is then still to be
                scored; a reset of all rows drops it.

        Raises:
            LLMGymError: Unknown example id, or a mask or seeds of the wrong shape.
        """
        options = options or {}
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        if seeds is not None and len(seeds) != self.num_envs:
            raise LLMGymError(f"{len(seeds)} seeds for {self.num_envs} environments; pass one a row, or one integer")
        beginning = self._reset_mask(options.get("reset_mask"))
        rows = np.flatnonzero(beginning)
        if options.get("reset_mask") is None:
            self._unscored = []
        for row, row_seed in enumerate(() if seeds is None else seeds):
            if beginning[row] and row_seed is not None:
                self.generators[row] = seeding.np_random(int(row_seed))[0]
        infos = self._add_masks(self._begin(rows, self._chosen(options.get("example"))), rows)
        self._started = True
        if self.render_mode == "human":
            self.render()
        return self.observation(), infos

    def _reset_mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, bool)
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise LLMGymError(
                f"reset_mask must be bool of shape ({self.num_envs},) with a True, got {mask.dtype} {mask.shape}"
            )
        if not self._started and not mask.all():
            raise LLMGymError("the first reset must reset every row; call reset() without reset_mask first")
        return mask

    def _chosen(self, example: Any) -> list[int | None]:
        ids = list(example) if isinstance(example, list | tuple | np.ndarray) else [example] * self.num_envs
        if len(ids) != self.num_envs:
            raise LLMGymError(f"options['example'] has {len(ids)} ids for {self.num_envs} environments")
        for name in ids:
            if name is not None and name not in self._index:
                raise LLMGymError(
                    f"example {name!r} is not in this split; it has {', '.join(self.example_ids[:3])}, ..."
                )
        return [None if name is None else self._index[name] for name in ids]

    def _begin(
        self, rows: np.ndarray, chosen: list[int | None] | None = None, infos: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write the prompts of new episodes into `rows`, and what there is to know of them into `infos`."""
        infos = {} if infos is None else infos
        self._unscored = [ended for ended in self._unscored if ended.past[-1].over or ended.row not in rows]
        self._ids[rows] = 0
        self._roles[rows] = 0
        self._left[rows] = self.max_new_tokens
        self._turn[rows] = 0
        self._done[rows] = False
        for row in rows.tolist():
            index = None if chosen is None else chosen[row]
            if index is None:
                if self.generators[row] is None:
                    self.generators[row] = seeding.np_random()[0]
                index = int(self.generators[row].integers(len(self.examples)))  # type: ignore[union-attr]
            prompt = self._prompt(index)
            size = len(prompt.ids)
            self._ids[row, :size] = prompt.ids
            self._roles[row, :size] = GIVEN
            self._length[row] = self._prompt_length[row] = self._turn_start[row] = size
            self._past[row] = []
            self._turns[row] = self.task.opening(self.examples[index])
            self._example[row] = index
            self._limit(row)
            info = {"example": self.examples[index]["id"], "words_cut": prompt.words_cut}
            infos = self._add_info(infos, info, row)
        return infos

    def _limit(self, row: int) -> None:
        if self._limits is not None:
            ids = self._ids[row, : self._turn_start[row]]
            self._limits.begin(int(row), self.examples[self._example[row]], self._turns[row], ids)

    def _prompt(self, index: int) -> Prompt:
        prompt = self._prompts.get(index)
        if prompt is None:
            prompt = self._prompts[index] = self.prompt_builder(self.examples[index])
        return prompt

    def step(self, actions: Any) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append one token to each running row.

        Args:
            actions: Token ids, integer `(N,)`.

        Returns:
            Observations, rewards float64 `(N,)`, terminations bool `(N,)`, truncations (always False) and infos.

        Raises:
            LLMGymError: Actions of the wrong shape or outside the vocabulary, a step before `reset`, or feedback
                that is not finite.
        """
        actions = self.checked(actions)
        return self._transition(lambda rows: self.write(rows, actions[rows]))

    def step_texts(
        self, texts: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Write a whole turn into each running row: a text's tokens, then a stop token, as far as the cap allows.

        It is what as many calls of `step` would come to, and returns what the last of them would.

        Args:
            texts: N texts.

        Raises:
            LLMGymError: Not N strings, a step before `reset`, or feedback that is not finite.
        """
        if isinstance(texts, str) or len(texts) != self.num_envs or not all(isinstance(text, str) for text in texts):
            raise LLMGymError(f"step_texts takes {self.num_envs} texts, one for each row, got {texts!r}")
        if not self._started:
            raise LLMGymError("step_texts was called before reset; call reset() first")
        stop: int = self.single_action_space.stop_ids[0]  # type: ignore[attr-defined]

        def write(rows: np.ndarray) -> np.ndarray:
            self.write_turns(rows, [[*self.encode(row, texts[row]), stop] for row in rows.tolist()])
            return rows

        return self._transition(write)

    def write_turns(self, rows: np.ndarray, turns: Sequence[Sequence[int]]) -> None:
        """Write given tokens into rows, one of each at a time, as far as the turn of each goes.

        Args:
            rows: int `(n,)`, which are running.
            turns: For each, the ids of its tokens.
        """
        going = list(zip(rows.tolist(), turns, strict=True))
        for column in range(max(map(len, turns), default=0)):
            going = [(row, ids) for row, ids in going if column < len(ids)]
            if not going:
                return
            tokens = np.array([ids[column] for _, ids in going], np.int64)
            ended = set(self.write(np.array([row for row, _ in going], np.int64), tokens).tolist())
            going = [(row, ids) for row, ids in going if row not in ended]

    def _transition(
        self, write: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Let `write` append to the running rows and return whose turn is over; end, score and reset these."""
        infos: dict[str, Any] = {}
        resting = self._done.copy()
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and resting.any():
            infos = self._begin(np.flatnonzero(resting))
        rows = np.flatnonzero(~resting)
        self.end_turns(write(rows))
        rewards = np.zeros(self.num_envs)
        finals: dict[int, dict[str, Any]] = {}
        for row, turn in self.score():
            rewards[row] = turn.reward
            info = _turn_info(turn)
            if (reply := self.reply(row)) is not None:
                info["reply"] = reply
            if turn.over and self.autoreset_mode is AutoresetMode.SAME_STEP:
                finals[row] = info
            else:
                infos = self._add_info(infos, info, row)
        terminations = self._done.copy()
        if self.render_mode == "human":
            self.render()
        if finals:
            infos = self._restart(finals, infos)
        infos = self._add_masks(infos, np.flatnonzero(~self._done))
        return self.observation(), rewards, terminations, np.zeros(self.num_envs, bool), infos

    def checked(self, actions: Any) -> np.ndarray:
        """Return actions as an integer array `(N,)`.

        Raises:
            LLMGymError: They are of the wrong shape or outside the vocabulary, in a row that has ended too, or `reset`
                has not been called.
        """
        actions = np.asarray(actions)
        if not self._started:
            raise LLMGymError("step was called before reset; call reset() first")
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise LLMGymError(f"actions must be {self.num_envs} integers, got {actions.dtype} of shape {actions.shape}")
        if actions.min() < 0 or actions.max() >= len(self._stops):
            bad = actions[(actions < 0) | (actions >= len(self._stops))][0]
            raise LLMGymError(f"action {bad} is outside the vocabulary of {len(self._stops)} tokens")
        return actions

    def write(self, rows: np.ndarray, tokens: np.ndarray, log_probs: np.ndarray | None = None) -> np.ndarray:
        """Append one token to each of `rows`.

        `step` is this, `end_turns` and `score`. A collector that needs no reward before the end calls them itself:
        partners then answer, and scorers judge, many rows at once.

        Args:
            rows: int `(n,)`, running rows.
            tokens: int `(n,)`, one token for each.
            log_probs: float `(n,)`, what the agent thought of them, for `render`.

        Returns:
            int `(m,)`, the rows whose turn is over, by an illegal token too. They take no further token before
            `end_turns`.
        """
        column = self._length[rows]
        self._ids[rows, column] = tokens
        self._roles[rows, column] = WRITTEN
        self._log_probs[rows, column] = np.nan if log_probs is None else log_probs
        self._length[rows] += 1
        self._left[rows] -= 1
        over = self._stops[tokens] | (self._left[rows, 0] == 0)
        return rows[over if self._limits is None else over | self._limits.follow(rows, np.asarray(tokens))]

    def action_masks(self) -> np.ndarray:
        """Return which tokens may be written next, int8 `(N, V)`, 1 for legal; all where nothing is constrained.

        It has the name and form that sb3-contrib's `MaskablePPO` asks for. A row that has ended takes any action.
        """
        masks = np.ones((self.num_envs, len(self._stops)), np.int8)
        if self._limits is not None:
            for row in np.flatnonzero(~self._done).tolist():
                masks[row] = self._limits.mask(row)
        return masks

    def _add_masks(self, infos: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
        """Add what may be written in `rows`, where the task constrains it."""
        if self._limits is not None:
            for row in rows.tolist():
                infos = self._add_info(infos, {"action_mask": self._limits.mask(row)}, row)
        return infos

    def given(self, name: str) -> str | list[dict[str, str]]:
        """Return what the prompt of an example is rendered from: the chat, or the plain text."""
        return self.prompt_builder.given(self.examples[self._index[name]])

    def encode(self, row: int, text: str) -> list[int]:
        """Return the ids of `text`, without a stop token, as an agent would write them in `row`.

        Where what may be written is constrained and the text keeps to it, they are the legal ones.
        """
        if self._limits is not None:
            ids = self._limits.encode(self.examples[self._example[row]], self._turns[row], text)
            if ids is not None:
                return ids
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def end_turns(self, rows: np.ndarray) -> None:
        """Record the turns of `rows`, unscored; let the partner answer them, or end the episode."""
        if not len(rows):
            return
        turns = self._record_turns(rows)
        answered = self._turn[rows] < self.task.max_turns
        if self._limits is not None:
            answered &= ~self._limits.illegal[rows]
        going_on = [turn for turn, wanted in zip(turns, answered, strict=True) if wanted]
        replies = iter(self.partner(going_on) if going_on else ())
        for row, turn, wanted in zip(rows, turns, answered, strict=True):
            reply = next(replies) if wanted else None
            turn.over = reply is None or not self._begin_turn(row, reply)
            self._past[row].append(turn)
            if turn.over:
                self._done[row] = True
                self._turns[row] += self.task.farewell(turn.example, turn.turns)
                self.episodes[row] = self._record(row, turn, "context" if reply is not None else turn.finish_reason)
            self._unscored.append(Ended(int(row), turn, self._past[row], self.episodes[row]))

    def _record_turns(self, rows: np.ndarray) -> list[Episode]:
        """Return the records of the turns that `rows` have just ended."""
        turns = []
        for row in rows:
            ids = self._written(row)
            text = self._text(ids)
            self._turns[row].append({"role": "agent", "text": text})
            self._turn[row] += 1
            illegal = self._limits is not None and self._limits.illegal[row]
            reason = "illegal" if illegal else "stop" if self._stops[ids[-1]] else "length"
            turns.append(self._episode(row, text, reason))
        return turns

    def _written(self, row: int) -> np.ndarray:
        """Return what `row` has written of its turn."""
        return self._ids[row, self._turn_start[row] : self._length[row]]

    def _text(self, ids: np.ndarray) -> str:
        """Return a turn's text as records hold it; of a list, or in `batch_decode`, each id is looked at twice."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def drafts(self, rows: np.ndarray) -> list[Episode]:
        """Return what `rows` have written so far of their turns, as records of turns that are not over."""
        drafts = [self._episode(row, self._text(self._written(row)), "length") for row in rows]
        for draft in drafts:
            draft.turns.append({"role": "agent", "text": draft.text})
            draft.over = False
        return drafts

    def _begin_turn(self, row: int, reply: str) -> bool:
        """Append the partner's reply; return whether it and another turn fit into the context."""
        assert self._reply_template is not None
        start = self._length[row]
        ids = self._reply_template(reply, int(self._ids[row, start - 1]))
        end = start + len(ids)
        if end + self.max_new_tokens > self.context:
            return False
        self._ids[row, start:end] = ids
        self._roles[row, start:end] = GIVEN
        self._length[row] = self._turn_start[row] = end
        self._left[row] = self.max_new_tokens
        self._turns[row].append({"role": self.task.speaker(self._turns[row]), "text": reply})
        self._limit(row)
        return True

    def _record(self, row: int, last: Episode, finish_reason: str) -> Episode:
        """Return the record of the whole episode, which is its only turn's where a task has but one."""
        if self.task.max_turns == 1:
            return last
        text = "\n".join(turn["text"] for turn in self._turns[row] if turn["role"] == "agent")
        return self._episode(row, text, finish_reason)

    def _episode(self, row: int, text: str, finish_reason: str) -> Episode:
        start, end = self._prompt_length[row], self._length[row]
        return self.task.episode(
            self.examples[self._example[row]],
            text,
            prompt_ids=self._ids[row, :start].copy(),
            response_ids=self._ids[row, start:end].copy(),
            agent_mask=self._roles[row, start:end] == WRITTEN,
            finish_reason=finish_reason,
            turns=list(self._turns[row]),
        )

    def score(self, abstaining: bool = False) -> list[tuple[int, Episode]]:
        """Score all turns that have ended since the last time, in one call of the feedback.

        Args:
            abstaining: Whether the feedback may abstain: such a turn, and its episode, keep None for a reward.

        Returns:
            The row and the record of each turn. Its `reward` and `parts` are its own; the episode's, in `episodes`,
            are the sums.

        Raises:
            LLMGymError: The feedback is not finite, or abstains where it may not.
        """
        unscored, self._unscored = self._unscored, []
        turns = [ended.turn for ended in unscored]
        for ended, score in zip(unscored, self.feedback(turns) if turns else (), strict=True):
            turn = ended.turn
            if score.abstained and abstaining:
                continue
            if score.abstained:
                raise LLMGymError(
                    f"{', '.join(score.abstained)} abstained from example {turn.example['id']!r}, and a step needs a "
                    "reward; give the judge a longer deadline, or train by an algorithm of ours, which leaves it out"
                )
            reward(ended, score, self.task, self._pieces)
        return [(ended.row, ended.turn) for ended in unscored]

    def _restart(self, last: dict[int, dict[str, Any]], infos: dict[str, Any]) -> dict[str, Any]:
        """Same-step autoreset: put what ended aside as `final_obs` and `final_info`, and begin anew."""
        observation = self.observation()
        for row, info in last.items():
            final = {key: value[row] for key, value in observation.items()}
            infos = self._add_info(infos, {"final_obs": final, "final_info": info}, row)
        return self._begin(np.fromiter(last, np.int64), infos=infos)

    def length(self, row: int) -> int:
        """Return how many tokens `row` holds."""
        return int(self._length[row])

    def as_turn(self, row: int, ids: np.ndarray) -> Episode:
        """Return the record, unscored, of a turn that would consist of `ids` if the agent wrote them now in `row`."""
        text = self._text(ids)
        start, end = self._prompt_length[row], self._length[row]
        return self.task.episode(
            self.examples[self._example[row]],
            text,
            prompt_ids=self._ids[row, :start].copy(),
            response_ids=np.concatenate([self._ids[row, start:end], ids]).astype(np.int32),
            agent_mask=np.concatenate([self._roles[row, start:end] == WRITTEN, np.ones(len(ids), bool)]),
            finish_reason="stop" if self._stops[ids[-1]] else "length",
            turns=[*self._turns[row], {"role": "agent", "text": text}],
        )

    def messages(self, row: int) -> list[dict[str, str]]:
        """Return what `row` holds as a chat, for a model elsewhere: the prompt, and what has been said since."""
        example = self.examples[self._example[row]]
        said = self._turns[row][len(self.task.opening(example)) :]
        roles = {"agent": "assistant"}
        return self.prompt_builder.messages(example) + [
            {"role": roles.get(turn["role"], "user"), "content": turn["text"]} for turn in said
        ]

    def reply(self, row: int) -> str | None:
        """Return what the partner said after the agent's last turn in `row`, or None."""
        last = self._turns[row][-1]
        return last["text"] if last["role"] != "agent" else None

    def reference_turn(self, row: int) -> str | None:
        """Return what a person would write now in `row`, if the data has that."""
        return self.task.reference_turn(self.examples[self._example[row]], self._turns[row])

    def observation(self) -> dict[str, np.ndarray]:
        """Return the observation of all rows."""
        return {"input_ids": self._ids.copy(), "roles": self._roles.copy(), "tokens_left": self._left.copy()}

    def render(self) -> tuple[str, ...] | None:
        """Return each row as text under `ansi`; print the rows under `human`, as `reset` and `step` do by themselves.

        Raises:
            LLMGymError: The environment was made without `render_mode`.
        """
        if self.render_mode is None:
            raise LLMGymError("nothing to render: make the environment with render_mode='ansi' or 'human'")
        texts = tuple(self._render_row(row) for row in range(self.num_envs))
        if self.render_mode == "ansi":
            return texts
        clear = "\033[H\033[2J" if sys.stdout.isatty() else ""
        print(clear + "\n".join(texts), flush=True)
        return None

    def _render_row(self, row: int) -> str:
        start, end = self._turn_start[row], self._length[row]
        prompt = self.tokenizer.decode(self._ids[row, :start], skip_special_tokens=True)
        pieces = self._pieces(self._ids[row, start:end])
        known = self._log_probs[row, start:end]
        in_colour = self.render_mode == "human" and not np.isnan(known).all()
        episode = self.episodes[row] if self._done[row] else None
        coloured = colour(pieces, known.tolist()) if in_colour else None
        return render_text(prompt, "".join(pieces), int(self._left[row, 0]), episode, coloured)

    def _pieces(self, ids: np.ndarray) -> list[str]:
        """Return what each token adds to the text."""
        texts = [self.tokenizer.decode(ids[: i + 1], skip_special_tokens=True) for i in range(len(ids))]
        return [text[len(before) :] for before, text in zip(["", *texts], texts, strict=False)]


def _turn_info(turn: Episode) -> dict[str, Any]:
    return {
        "example": turn.example["id"],
        "text": turn.text,
        "finish_reason": turn.finish_reason,
        "score": turn.reward,
        "parts": dict(turn.parts),
    }


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        names = ", ".join(repr(m.value) for m in AutoresetMode)
        raise LLMGymError(f"autoreset_mode={mode!r} is unknown; expected one of {names}") from error
