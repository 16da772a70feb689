"""A causal language model as a Stable-Baselines3 actor-critic policy."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.checks import check_head, check_spaces, check_window
from agents.decoder import Decoder, can_pack
from agents.engine import Engine
from agents.head import Output, constrained_stats, divergence, token_stats
from agents.mask import Allowed, along, following, masked, open_states, reached
from agents.optimizer import OPTIMIZERS, find_optimizer
from agents.sampling import choose
from agents.stride import Strides
from llm_gym.choices import Constraint, State
from llm_gym.errors import LLMGymError, positive
from llm_gym.models.packing import Packed, check_attention

Observation = Packed | dict[str, torch.Tensor]


class LLMPolicy(ActorCriticPolicy):
    """A causal language model with LoRA adapters and a value head, for SB3's on-policy algorithms.

    Actions are token ids, observations are those of `llm_gym`'s environments. While acting, keys and values are kept
    by environment row, so that `policy(obs)` runs one token a row; the caches are dropped when weights change. The
    value head reads what the language model has read, but its loss trains the head alone.
    `evaluate_actions` takes SB3's flat observations, or the `Packed` batches of `SequenceRolloutBuffer`, which run
    each episode once. Where the environment's task constrains its tokens, the legal ones alone share the probability,
    in sampling as in evaluating.

    Args:
        observation_space: Of a text environment.
        action_space: Of the same; its tokenizer must be the model's.
        lr_schedule: SB3's learning rate schedule.
        model: Name of a causal language model: a catalogue name, hub id or local folder.
        lora: Rank of the adapters on all linear layers; None trains weights of the model itself.
        last_layers: With `lora=None`, how many layers at the end are trained; None trains every weight.
        adapter: Folder of a saved adapter to start from.
        temperature: Of sampling, and of every log-probability.
        gradient_checkpointing: Compute the inside of each layer again for the gradient instead of keeping it: more
            time, less memory (Chen et al. 2016). It does not change the gradient.
        use_sde: Must be False; SB3 passes it.
        optimizer_class: `adamw`, `adam`, `rmsprop`, or a class.
        optimizer_kwargs: Its arguments; None for the customary ones, without weight decay.

    Raises:
        LLMGymError: Spaces that are not a text environment's, a different tokenizer, a model that cannot act here.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        model: str = "smollm2-135m",
        lora: int | None = 16,
        last_layers: int | None = None,
        adapter: str | None = None,
        temperature: float = 1.0,
        gradient_checkpointing: bool = False,
        use_sde: bool = False,
        optimizer_class: str | type[torch.optim.Optimizer] = "adamw",
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if use_sde:
            raise LLMGymError("use_sde=True does not apply to token actions; leave it False")
        if temperature <= 0:
            raise LLMGymError(f"temperature={temperature} must be positive; for greedy actions pass deterministic=True")
        if lora is not None:
            positive("lora", lora)
        if last_layers is not None and (lora is not None or adapter is not None):
            raise LLMGymError(f"last_layers={last_layers} trains whole layers and no adapters; pass lora=None with it")
        optimizer_class, optimizer_kwargs = find_optimizer(optimizer_class, optimizer_kwargs)
        # ActorCriticPolicy's own constructor would build an MLP on float features.
        super(ActorCriticPolicy, self).__init__(
            observation_space, action_space, optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs
        )
        check_spaces(observation_space, action_space, model)
        self.model_name, self.lora, self.adapter, self.temperature = model, lora, adapter, temperature
        self.last_layers = last_layers
        self.actions, self.capacity = int(action_space.n), observation_space["input_ids"].shape[0]  # type: ignore[attr-defined, index]
        self.gradient_checkpointing = gradient_checkpointing
        self._stop_ids = list(getattr(action_space, "stop_ids", ()))
        self._frozen: dict[str, torch.Tensor] | None = None  # the reference's copy of what is trained
        self._constraint: Constraint | None = getattr(action_space, "constraint", None)
        self._build_model()
        trainable = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = optimizer_class(trainable, lr=lr_schedule(1), **optimizer_kwargs)  # type: ignore[call-arg]
        # SB3's `seed` reaches a policy through torch's global generator alone: one number is drawn from it.
        self._seed = int(torch.randint(2**62, ()).item())
        self._generator: torch.Generator | None = None
        self._engines: dict[str, Engine] = {}
        self._decoder: Decoder | None = None
        self._stale = True
        self._weights: tuple[Any, ...] = ()
        self._strides = Strides()

    # ---------------------------------------------------------------- the model

    def _build_model(self) -> None:
        from llm_gym.models.load import load_causal_lm

        causal = load_causal_lm(self.model_name, device="cpu")
        if causal.config.vocab_size < self.actions:
            raise LLMGymError(
                f"model {self.model_name!r} has {causal.config.vocab_size} logits for the environment's {self.actions} "
                f"tokens; make the environment with tokenizer={self.model_name!r}"
            )
        check_window(causal.config, self.capacity)
        check_attention(causal.config, self.model_name)
        self.lm = self._with_adapters(causal)
        self._lora_layers = [m for m in self.lm.modules() if hasattr(m, "disable_adapters") and hasattr(m, "lora_A")]
        self.value_head = nn.Linear(causal.config.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        check_head(causal, self.model_name)

    def _with_adapters(self, causal: Any) -> Any:
        if self.lora is None and self.adapter is None:
            return _freeze_all_but(causal, self.last_layers)
        from agents.lora import make_lean, with_adapters
        from llm_gym.models.load import adapted

        if self.adapter is None:
            return with_adapters(causal, self.model_name, self.lora)  # type: ignore[arg-type]
        lm = adapted(causal, self.model_name, self.adapter, trainable=True)
        if hasattr(lm.get_base_model().get_output_embeddings(), "base_layer"):
            raise LLMGymError(f"the adapter {self.adapter!r} changes the output layer, which is not supported yet")
        make_lean(lm)
        return lm

    @property
    def _causal(self) -> Any:
        return self.lm.get_base_model() if self._lora_layers else self.lm

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained, not weights of the model itself."""
        return bool(self._lora_layers)

    @property
    def backbone(self) -> Any:
        """The transformer without its head, adapters included."""
        return self._causal.base_model

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits `(n, V)` at the sampling temperature from hidden states `(n, H)`."""
        weight, bias = self._head()
        return nn.functional.linear(self._scaled(hidden), weight, bias)

    def _scaled(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states whose logits are at the temperature: there are fewer of them than of logits."""
        return hidden.float() / self.temperature

    def _next_logits(self, obs: Observation, engine: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states `(N, H)` and logits `(N, V)` for the next token, -inf where it would be illegal."""
        hidden = self._hidden(obs, engine)
        decoded = self._decoder is not None and not torch.is_grad_enabled() and not isinstance(obs, Packed)
        logits = self._decoded_logits(hidden) if decoded else self.logits(hidden)
        return hidden, masked(logits, self._allowed(obs))

    def _allowed(self, obs: Observation) -> Allowed | None:
        """Return the legal tokens at each place, found anew from the ids; None where nothing is constrained."""
        if self._constraint is None:
            return None
        if isinstance(obs, Packed):
            return [ids for segment in obs.segments for ids in along(self._constraint, segment)]
        return open_states(reached(self._constraint, obs["input_ids"].cpu().numpy(), obs["roles"].cpu().numpy()))

    def _decoded_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.logits(hidden) if self._decoder is None else self._decoder.head(self._scaled(hidden))

    def _head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight `(V, H)` and bias, at the temperature, of the output layer for the environment's V tokens."""
        head = self._causal.get_output_embeddings()
        # float32 also where the base is bf16: rounded logits make ratios drift from 1.
        bias = None if head.bias is None else head.bias[: self.actions].float() / self.temperature
        return head.weight[: self.actions].float(), bias

    def _values(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.value_head(hidden.float())

    def to(self, *args: Any, **kwargs: Any) -> LLMPolicy:
        """Move the policy; on CUDA the frozen base of adapters is kept in bf16, what is trained stays float32.

        Whole layers that are trained pass float32 on to each other, so that the frozen ones below them stay so too.
        """
        super().to(*args, **kwargs)
        coarse = self.device.type == "cuda" and self.last_layers is None
        self._set_base_dtype(torch.bfloat16 if coarse else torch.float32)
        return self

    def _set_base_dtype(self, dtype: torch.dtype) -> None:
        self._engines.clear()  # their keys and values have the old device and dtype
        self._decoder = None
        for p in self.lm.parameters():
            if not p.requires_grad:
                p.data = p.data.to(dtype)

    def keep_reference(self) -> None:
        """Keep a copy of what is trained as it is now, for `reference`; new adapters do nothing, so there is none."""
        if not self._lora_layers or self.adapter is not None:
            self._frozen = {name: p.detach().clone() for name, p in self._trained_weights()}

    def _trained_weights(self) -> list[tuple[str, nn.Parameter]]:
        return [(f"lm.{name}", p) for name, p in self.lm.named_parameters() if p.requires_grad]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Be the reference inside the block: as `keep_reference` found it, or the model without its adapters.

        Raises:
            LLMGymError: Weights of the model itself are trained, and none were kept.
        """
        if self._lora_layers and self._frozen is None:
            with self.lm.disable_adapter():
                yield
            return
        if self._frozen is None:
            raise LLMGymError(
                "no reference model: with lora=None call keep_reference() before training, or pass lora=16"
            )
        with self._having(self._frozen):
            yield

    @contextmanager
    def _having(self, weights: dict[str, torch.Tensor]) -> Iterator[None]:
        """Have other weights inside the block; the present ones, by the same names, are kept in their place."""
        self._exchange(weights)
        try:
            yield
        finally:
            self._exchange(weights)

    def _exchange(self, weights: dict[str, torch.Tensor]) -> None:
        for name in weights:
            p = self.get_parameter(name)
            p.data, weights[name] = weights[name].to(p.device), p.data

    # ---------------------------------------------------------------- hidden states

    def _hidden(self, obs: Observation, engine: str) -> torch.Tensor:
        """Return the hidden state that decides each action, `(N, H)`."""
        if isinstance(obs, Packed):
            return self._hidden_packed(obs.to(self.device))
        lengths = (obs["roles"] > 0).sum(1)
        if torch.is_grad_enabled():
            return self._hidden_whole(obs["input_ids"], lengths)
        return self._decode(engine, obs["input_ids"].cpu().numpy(), lengths.cpu().numpy())

    def _hidden_packed(self, packed: Packed) -> torch.Tensor:
        with self._recomputing():
            hidden = self.backbone(
                input_ids=packed.input_ids,
                attention_mask=packed.mask,
                position_ids=packed.position_ids,
                use_cache=False,
            ).last_hidden_state
        return hidden[packed.rows, packed.columns]

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Make gradient checkpointing work inside the block: transformers ties it to training mode, and so to dropout.

        Only the layers themselves are put into training mode, not what they are made of.
        """
        wanted = self.gradient_checkpointing and torch.is_grad_enabled()
        layers = [m for m in self.backbone.modules() if isinstance(m, GradientCheckpointingLayer)] if wanted else []
        for layer in layers:
            layer.gradient_checkpointing = layer.training = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
        try:
            yield
        finally:
            for layer in layers:
                layer.gradient_checkpointing = layer.training = False

    def _hidden_whole(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Run whole sequences; padding is on the right, where causality keeps it from mattering."""
        ids = ids[:, : int(lengths.max())].long()
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        hidden = self.backbone(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        return hidden[torch.arange(len(ids), device=ids.device), lengths.long() - 1]

    def _decode(self, name: str, ids: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        return self._engine(name, len(ids)).last_hidden(ids, lengths)

    def _engine(self, name: str, size: int) -> Engine:
        """Return an engine of `size` rows that knows nothing of weights that have changed."""
        if (weights := self._weights_now()) != self._weights:
            self.forget()
            self._weights = weights
        engine = self._engines.get(name)
        if engine is None or engine.rows != size or engine.backbone.device != self.device:
            engine = self._engines[name] = Engine(self._decoding_backbone(), size, self.capacity)
        if self._decoder is not None and self._stale:
            self._decoder.refresh(*self._head())
            self._stale = False
        _policies.add(self)  # here, which a deep copy reaches too
        return engine

    def _decoding_backbone(self) -> Any:
        if self._decoder is None and can_pack(self.backbone):
            self._decoder, self._stale = Decoder(self.backbone), True
        return self.backbone if self._decoder is None else self._decoder.backbone

    # ---------------------------------------------------------------- when weights change

    def forget(self) -> None:
        """Drop what has been read; called when weights may have changed."""
        self._stale = True
        for engine in self._engines.values():
            engine.clear()

    def _weights_now(self) -> tuple[Any, ...]:
        """Return first what changes when a weight is written in place, then what a step depends on beside its values.

        That is where weights lie (`p.data = ...` moves them), which adapters are on, and the temperature.
        """
        versions, places = zip(*((p._version, p.data_ptr()) for p in self.parameters()), strict=True)
        layer = self._lora_layers[0] if self._lora_layers else None
        adapters = layer and (layer.disable_adapters, tuple(layer.active_adapters))
        return versions, places, self.temperature, adapters

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made again when needed; packed weights cannot be copied."""
        return {**self.__dict__, "_engines": {}, "_decoder": None, "_strides": Strides()}

    def set_training_mode(self, mode: bool) -> None:
        """Keep dropout off in both modes: the ratio of the first update must be 1."""
        if mode:
            self.forget()
        super().set_training_mode(False)

    # ---------------------------------------------------------------- SB3's hooks

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return actions int64 `(N,)`, values float32 `(N, 1)` and log-probabilities float32 `(N,)`."""
        hidden, logits = self._next_logits(obs, "rollout")
        actions, log_probs = self._choose(logits, deterministic)
        return actions, self._values(hidden), log_probs

    def _choose(self, logits: torch.Tensor, deterministic: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a token for each row of `(N, V)` and its log-probability."""
        return choose(logits, None if deterministic else self._drawn(len(logits)))

    def _drawn(self, n: int) -> torch.Tensor:
        """Draw a random number for each of `n` rows, float64 `(n, 1)`."""
        return torch.rand(n, 1, generator=self.generator, device=self.device, dtype=torch.float64)

    @property
    def generator(self) -> torch.Generator:
        """What sampling draws from."""
        if self._generator is None or self._generator.device != self.device:
            self._generator = torch.Generator(self.device).manual_seed(self._seed)
        return self._generator

    def act(
        self, obs: dict[str, np.ndarray], rows: np.ndarray, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose a token for some rows of a vector environment: `write` with `most=1`.

        Returns:
            Actions int64 `(n,)` and their log-probabilities float32 `(n,)`.
        """
        tokens, log_probs = self.write(obs, rows, 1, deterministic)
        return tokens[:, 0], log_probs[:, 0]

    def write(
        self, obs: dict[str, np.ndarray], rows: np.ndarray, most: int, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Write several tokens into some rows of a vector environment, as `act` between its steps would.

        A row is written until its turn ends, by a stop token or its cap, or it has got `most` tokens. On CUDA, where no
        token is constrained, the device goes on by itself (`agents.stride`); once a row has ended the others then draw
        other random numbers than they would token by token.

        Args:
            obs: The observation of all rows.
            rows: int `(n,)`, the rows to write in; the others cost nothing.
            most: The most tokens a row gets.
            deterministic: Take the likeliest token each time.

        Returns:
            Tokens int64 `(n, most)`, -1 after the end of a row's turn, and their log-probabilities float32 `(n, most)`.
        """
        left = np.minimum(obs["tokens_left"][rows, 0], most)
        tokens, log_probs = np.full((len(rows), most), -1), np.zeros((len(rows), most), np.float32)
        running = np.arange(len(rows))
        lengths = (obs["roles"][rows] > 0).sum(1)
        if most > 1 and self._can_stride():
            return self._write_stride(
                obs["input_ids"][rows], lengths, rows, len(obs["roles"]), left, most, deterministic
            )
        with torch.no_grad():
            hidden = self._begin(obs, lengths, rows)
            states: list[State | None] | None = None
            if self._constraint is not None:
                states = reached(self._constraint, obs["input_ids"][rows], obs["roles"][rows])
            for place in range(most):
                logits = self._legal_logits(hidden, None if states is None else open_states(states))
                chosen, chances = self._choose(logits, deterministic)
                tokens[running, place], log_probs[running, place] = chosen.cpu().numpy(), chances.cpu().numpy()
                going_on = (left[running] > place + 1) & ~np.isin(tokens[running, place], self._stop_ids)
                states = None if states is None else following(states, tokens[running, place], going_on)
                running = running[going_on]
                if not len(running):
                    break
                hidden = self._append(rows[running], tokens[running, place])
        return tokens, log_probs

    def _can_stride(self) -> bool:
        return self.device.type == "cuda" and self._constraint is None

    def _write_stride(
        self,
        ids: np.ndarray,
        lengths: np.ndarray,
        rows: np.ndarray,
        size: int,
        left: np.ndarray,
        most: int,
        greedy: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        engine = self._engine("act", size)
        engine.read(ids, lengths, rows)
        sizes = len(rows), int(lengths.max()) + most, most
        form = self._weights[1:]
        stride = self._strides.find(form, engine, self._logits_of_now, self._stop_ids, *sizes, not greedy)
        drawn = None if greedy else torch.stack([self._drawn(len(rows)) for _ in range(most)])
        return engine.write(stride, rows, left, drawn)

    def _logits_of_now(self) -> Any:
        """Return `logits` for as long as no weight moves: it makes no copy of the output layer in each call.

        What is trained is float32, and seen as it changes in place; a bias, which is scaled, is read anew each time.
        """
        head, actions = self._causal.get_output_embeddings(), self.actions
        weight, bias = head.weight[:actions].float(), None if head.bias is None else head.bias[:actions]

        def logits(hidden: torch.Tensor) -> torch.Tensor:
            offset = None if bias is None else bias.float() / self.temperature
            return nn.functional.linear(self._scaled(hidden), weight, offset)

        return logits

    def _begin(self, obs: dict[str, np.ndarray], lengths: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """Return the hidden state that decides the next token of each of `rows`."""
        return self._engine("act", len(obs["roles"])).last_hidden(obs["input_ids"][rows], lengths, rows)

    def _append(self, rows: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        """Return the hidden state after one more token in each of `rows`."""
        return self._engines["act"].append(rows, tokens)

    def _legal_logits(self, hidden: torch.Tensor, allowed: Allowed | None) -> torch.Tensor:
        return masked(self._decoded_logits(hidden), allowed)

    def evaluate_actions(self, obs: Any, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return values `(N, 1)`, log-probabilities `(N,)` and entropies `(N,)` of given actions, with gradient."""
        hidden = self._hidden(obs, "rollout")
        # Rewards of several units make the critic's gradient a hundred times the policy's: let into the language model,
        # it made PPO forget how to write within fifty updates.
        return self._values(hidden.detach()), *self._stats(hidden, actions.long().flatten(), self._allowed(obs))

    def output(self, packed: Packed) -> Output:
        """Return what the logits at each trained token are made of, with gradient, at the sampling temperature."""
        return Output(self._scaled(self._hidden_packed(packed.to(self.device))), *self._head())

    def divergence(self, packed: Packed, teacher: Output, beta: float) -> torch.Tensor:
        """Return the divergence from a teacher at each trained token, `(N,)`; see `agents.head.divergence`."""
        return divergence(self.output(packed), teacher, beta, self._allowed(packed))

    def _stats(
        self, hidden: torch.Tensor, tokens: torch.Tensor, allowed: Allowed | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, head = self._scaled(hidden), self._head()
        return (
            token_stats(hidden, *head, tokens) if allowed is None else constrained_stats(hidden, *head, tokens, allowed)
        )

    def get_distribution(self, obs: Any) -> CategoricalDistribution:
        """Return the distribution over the next token."""
        return CategoricalDistribution(self.actions).proba_distribution(self._next_logits(obs, "predict")[1])

    def predict_values(self, obs: Any) -> torch.Tensor:
        """Return values `(N, 1)`."""
        # At the end of a rollout SB3 asks for all rows one token on, which the rollout's own cache answers in one
        # token; a terminal observation is another number of rows and must not drive them out.
        rollout = self._engines.get("rollout")
        same = rollout is not None and not isinstance(obs, Packed) and rollout.rows == len(obs["roles"])
        return self._values(self._hidden(obs, "rollout" if same else "values"))

    def _predict(self, observation: Any, deterministic: bool = False) -> torch.Tensor:
        return self._choose(self._next_logits(observation, "predict")[1], deterministic)[0]

    # ---------------------------------------------------------------- saving

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the trained tensors only: the base model is known by its name."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trained}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` returned.

        Raises:
            LLMGymError: Tensors are missing or unknown, as with another rank or model.
        """
        mine = self.state_dict()
        wrong = set(state_dict) ^ set(mine) if strict else set()
        wrong |= {name for name in set(state_dict) & set(mine) if state_dict[name].shape != mine[name].shape}
        if wrong:
            raise LLMGymError(
                f"{len(wrong)} tensors do not fit this policy (such as {min(wrong)}); "
                f"was it saved with model={self.model_name!r} and lora={self.lora}?"
            )
        self.forget()
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def saved_arguments(self) -> dict[str, Any]:
        """Return the arguments that are kept with what `save_pretrained` writes, as JSON types.

        An optimiser that has no name here is not among them.
        """
        named = next((name for name, (known, _) in OPTIMIZERS.items() if known is self.optimizer_class), None)
        optimizer = {"optimizer_class": named, "optimizer_kwargs": self.optimizer_kwargs} if named else {}
        return {
            "model": self.model_name,
            "lora": self.lora,
            "temperature": self.temperature,
            "last_layers": self.last_layers,
            "gradient_checkpointing": self.gradient_checkpointing,
            **optimizer,
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what is trained of the language model into a folder, in safetensors.

        An adapter is written as PEFT does (`PeftModel.from_pretrained(base, folder)` loads it), a model whose own
        weights are trained as transformers does, with its tokenizer.
        """
        if self._lora_layers:
            # The embeddings are never trained; asked to find out itself, PEFT would look for the base model on the hub.
            self.lm.save_pretrained(str(folder), save_embedding_layers=False)
            # An empty template, and it names a folder of this machine.
            (Path(folder) / "README.md").unlink(missing_ok=True)
            return
        from llm_gym.models.load import load_tokenizer

        self.lm.save_pretrained(str(folder))
        load_tokenizer(self.model_name).save_pretrained(str(folder))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "model": self.model_name,
            "lora": self.lora,
            "last_layers": self.last_layers,
            "adapter": self.adapter,
            "temperature": self.temperature,
            "gradient_checkpointing": self.gradient_checkpointing,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }


def _freeze_all_but(causal: Any, last_layers: int | None) -> Any:
    """Freeze a model but for its last layers; None freezes nothing."""
    if last_layers is None:
        return causal
    layers = next(
        m for m in causal.modules() if isinstance(m, nn.ModuleList) and len(m) == causal.config.num_hidden_layers
    )
    if not 0 < last_layers <= len(layers):
        raise LLMGymError(f"last_layers={last_layers}: the model has {len(layers)} layers; pass 1 to {len(layers)}")
    causal.requires_grad_(False)
    for layer in list(layers)[-last_layers:]:
        layer.requires_grad_(True)
    return causal


_policies: weakref.WeakSet[LLMPolicy] = weakref.WeakSet()


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Drop caches after a step of any optimiser over a policy's weights: fused ones leave no version behind."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for policy in list(_policies):
        if not stepped.isdisjoint(map(id, policy.parameters())):
            policy.forget()


register_optimizer_step_post_hook(_after_step)
