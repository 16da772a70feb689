from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback

import tiny
from agents import LLMPolicy, SequenceRolloutBuffer
from agents.decoder import Decoder, PackedLinear
from llm_gym.errors import LLMGymError
from llm_gym.models.packing import Segment, pack

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def env(tiny_model: str, tmp_path: Path):
    return tiny.make_env(tiny_model, tmp_path, n_envs=4)


@pytest.fixture
def policy(env, tiny_model: str) -> LLMPolicy:
    return tiny.make_policy(env, tiny_model)


def schedule(_: float) -> float:
    return 1e-2


def check(policy: LLMPolicy, obs: dict[str, np.ndarray], close: dict[str, float] = CLOSE) -> None:
    """Every way to ask the policy gives what the naive forward gives."""
    t = tiny.tensors(obs)
    rows = np.arange(len(obs["roles"]))
    with torch.no_grad():
        log_probs, values = tiny.naive(policy, obs)
        actions, v, chosen = policy(t)
        torch.testing.assert_close(chosen, log_probs[rows, actions], **close)
        torch.testing.assert_close(v[:, 0], values, **close)
        best, v, chosen = policy(t, deterministic=True)
        assert torch.equal(best, log_probs.argmax(-1))
        torch.testing.assert_close(chosen, log_probs.max(-1).values, **close)
        v, chosen, entropy = policy.evaluate_actions(t, actions)
        torch.testing.assert_close(chosen, log_probs[rows, actions], **close)
        torch.testing.assert_close(entropy, -(log_probs.exp() * log_probs).sum(-1), **close)
        distribution = policy.get_distribution(t).distribution
        torch.testing.assert_close(distribution.logits, log_probs, **close)
        torch.testing.assert_close(policy.predict_values(t)[:, 0], values, **close)
        assert torch.equal(policy._predict(t, deterministic=True), best)
        taken, chosen = policy.act(obs, rows, deterministic=True)
        assert taken.tolist() == best.tolist()
        np.testing.assert_allclose(chosen, log_probs.max(-1).values, **close)


# -------------------------------------------------------------------- fast equals naive


def test_every_question_is_answered_as_by_the_naive_forward_through_episodes_and_resets(tiny_model, tmp_path) -> None:
    env = tiny.make_env(tiny.ragged_model(tiny_model, tmp_path), tmp_path, n_envs=4)
    policy = tiny.make_policy(env, tiny_model)
    obs, ended, lengths = env.reset(), 0, set()
    for _ in range(14):
        check(policy, obs)
        lengths |= set((obs["roles"] == 1).sum(1).tolist())
        with torch.no_grad():
            actions, _, _ = policy(tiny.tensors(obs))
        obs, _, dones, _ = env.step(actions.numpy())
        ended += dones.sum()
        assert not dones.all()
    assert ended > 4
    assert len(lengths) > 2  # prompts of different length


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_is_applied_once_everywhere(env, tiny_model, temperature) -> None:
    policy = tiny.make_policy(env, tiny_model, temperature=temperature)
    check(policy, env.reset())


def test_packed_log_probabilities_are_at_the_temperature(env, tiny_model) -> None:
    policy = tiny.make_policy(env, tiny_model, temperature=0.5)
    obs = env.reset()
    length = int((obs["roles"][0] > 0).sum())
    packed = pack([Segment(obs["input_ids"][0, :length], np.array([17]), np.ones(1, bool))])
    with torch.no_grad():
        _, log_probs, entropies = policy.evaluate_actions(packed, packed.targets)
        expected = tiny.naive(policy, obs)[0][0]
    torch.testing.assert_close(log_probs, expected[[17]], **CLOSE)
    torch.testing.assert_close(entropies[0], -(expected.exp() * expected).sum(), **CLOSE)


def test_logits_beyond_the_vocabulary_are_cut(env, policy) -> None:
    assert policy.lm.config.vocab_size > env.action_space.n
    with torch.no_grad():
        policy._causal.lm_head.weight[env.action_space.n :] *= 1000  # the model would say nothing else
    obs = env.reset()
    check(policy, obs)
    hidden = policy._hidden(tiny.tensors(obs), "predict")
    assert policy.logits(hidden).shape == (4, env.action_space.n)
    for _ in range(20):
        with torch.no_grad():
            assert (policy(tiny.tensors(obs))[0] < env.action_space.n).all()


def test_gradients_equal_those_of_the_naive_forward(env, policy) -> None:
    obs = tiny.run(env, policy, 4)[-1]
    actions = torch.tensor([5, 6, 7, 8])
    found = []
    for log_probs, values, entropies in (full_answer(policy, obs, actions), naive_answer(policy, obs, actions)):
        policy.zero_grad()
        (log_probs.sum() + values.square().sum() + 0.3 * entropies.sum()).backward()
        found.append(tiny.gradients(policy))
    tiny.assert_same(*found)
    assert any("value_head" in name for name in found[0]) and any("lora_A" in name for name in found[0])


def test_the_critic_does_not_train_the_language_model(env, policy) -> None:
    values, log_probs, _ = policy.evaluate_actions(tiny.tensors(env.reset()), torch.tensor([5, 6, 7, 8]))
    for of, expected in ((values, {"value_head"}), (log_probs, {"lm"})):
        policy.zero_grad()
        of.square().sum().backward(retain_graph=True)
        assert {name.split(".")[0] for name in tiny.gradients(policy)} == expected


def full_answer(policy, obs, actions):
    values, log_probs, entropy = policy.evaluate_actions(tiny.tensors(obs), actions)
    return log_probs, values[:, 0], entropy


def naive_answer(policy, obs, actions):
    log_probs, values = tiny.naive(policy, obs)
    return log_probs[torch.arange(4), actions], values, -(log_probs.exp() * log_probs).sum(-1)


def test_gradient_checkpointing_keeps_less_and_changes_nothing(env, tiny_model) -> None:
    obs = env.reset()
    lengths = (obs["roles"] > 0).sum(1)
    answer = np.arange(20, 50)
    segments = [
        Segment(ids[:length], answer, np.ones(len(answer), bool))
        for ids, length in zip(obs["input_ids"], lengths, strict=True)
    ]
    found, kept = [], []
    for checkpointing in (False, True):
        policy = tiny.make_policy(env, tiny_model, gradient_checkpointing=checkpointing)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            packed = pack(segments)
            _, log_probs, entropies = policy.evaluate_actions(packed, packed.targets)
        (log_probs.sum() + entropies.sum()).backward()
        found.append(tiny.gradients(policy))
        kept.append(sum(sizes))
        check(policy, obs)  # decoding goes on with its cache
    tiny.assert_same(*found)
    assert kept[1] < kept[0] / 3


def test_a_rollout_runs_one_token_a_row(env, policy) -> None:
    obs = env.reset()
    with torch.no_grad():
        actions, _, _ = policy(tiny.tensors(obs))
        obs, *_ = env.step(actions.numpy())
        engine = policy._engines["rollout"]
        before = engine.tokens_run
        actions, _, _ = policy(tiny.tensors(obs))
        assert engine.tokens_run - before == 4
        obs, *_ = env.step(actions.numpy())
        policy.predict_values(tiny.tensors(obs))  # what SB3 asks at the end of a rollout
        assert engine.tokens_run - before == 8
        policy(tiny.tensors(obs))
        assert engine.tokens_run - before == 12


def test_act_in_some_rows_leaves_the_others_alone(env, policy) -> None:
    obs = env.reset()
    rows = np.array([3, 1])
    actions, chosen = policy.act(obs, rows, deterministic=True)
    with torch.no_grad():
        log_probs, _ = tiny.naive(policy, obs)
    assert actions.tolist() == log_probs.argmax(-1)[rows].tolist()
    np.testing.assert_allclose(chosen, log_probs.max(-1).values[rows], **CLOSE)


# -------------------------------------------------------------------- sampling


def test_sampling_follows_the_distribution(env, policy) -> None:
    obs = {key: np.repeat(value[:1], 500, 0) for key, value in env.reset().items()}
    policy.temperature = 0.3
    with torch.no_grad():
        actions = torch.cat([policy(tiny.tensors(obs))[0] for _ in range(4)])
        expected = tiny.naive(policy, {key: value[:1] for key, value in obs.items()})[0][0].exp()
    share = torch.bincount(actions, minlength=policy.actions) / 2000
    assert (share - expected).abs().max() < 0.05
    assert expected.max() > 0.05  # there is something to see


def test_sampling_depends_on_the_seed_alone(env, tiny_model) -> None:
    obs = tiny.tensors(env.reset())

    def sample(seed: int, disturb: bool) -> list[int]:
        policy = tiny.make_policy(env, tiny_model, seed=seed)
        drawn = []
        for _ in range(5):
            if disturb:
                torch.rand(3)
                torch.manual_seed(99)
                np.random.seed(99)
                np.random.rand(3)
            with torch.no_grad():
                drawn += policy(obs)[0].tolist()
        return drawn

    assert sample(1, disturb=False) == sample(1, disturb=True)
    assert sample(1, disturb=False) != sample(2, disturb=False)


def test_sampling_leaves_the_global_generators_alone(env, policy) -> None:
    obs = tiny.tensors(env.reset())
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.no_grad():
        policy(obs)
        policy._predict(obs)
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()


# -------------------------------------------------------------------- weights that change


def loss(policy: LLMPolicy, obs: dict[str, np.ndarray]) -> torch.Tensor:
    values, log_probs, _ = policy.evaluate_actions(tiny.tensors(obs), torch.full((4,), 9))
    return -log_probs.mean() + values.square().mean()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda weights: torch.optim.Adam(weights, lr=0.05, fused=True),
        lambda weights: torch.optim.Adam(weights, lr=0.05, foreach=True),
        lambda weights: torch.optim.AdamW(weights, lr=0.05),
        lambda weights: torch.optim.SGD(weights, lr=1.0, fused=True),
        lambda weights: torch.optim.RMSprop(weights, lr=0.005),  # whose first step is ten times that
    ],
    ids=["fused Adam", "foreach Adam", "AdamW", "fused SGD", "RMSprop"],
)
def test_a_step_of_a_foreign_optimizer_counts_at_once(env, policy, optimizer) -> None:
    obs = tiny.run(env, policy, 3)[-1]
    check(policy, obs)
    stale = tiny.naive(policy, obs)[0]
    steps = optimizer([p for p in policy.parameters() if p.requires_grad])
    loss(policy, obs).backward()
    steps.step()  # nobody has called set_training_mode
    assert (tiny.naive(policy, obs)[0] - stale).abs().max() > 1e-3
    check(policy, obs)


def change_by_hand(policy: LLMPolicy) -> None:
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1)


def change_base_weights(policy: LLMPolicy) -> None:
    with torch.no_grad():
        policy._causal.model.embed_tokens.weight.mul_(2)


def change_by_copy(policy: LLMPolicy) -> None:
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(p * 1.5)


def load_others(policy: LLMPolicy) -> None:
    policy.load_state_dict({name: value + 0.2 for name, value in policy.state_dict().items()})


def load_others_by_assignment(policy: LLMPolicy) -> None:
    policy.load_state_dict({name: value + 0.2 for name, value in policy.state_dict().items()}, assign=True)


def change_as_one_vector(policy: LLMPolicy) -> None:
    """As trust-region and evolution methods do."""
    vector = torch.nn.utils.parameters_to_vector(policy.parameters())
    torch.nn.utils.vector_to_parameters(vector * 1.3, policy.parameters())


CHANGES = [
    change_by_hand,
    change_base_weights,
    change_by_copy,
    change_as_one_vector,
    load_others,
    load_others_by_assignment,
]


@pytest.mark.parametrize("change", CHANGES)
def test_weights_changed_by_other_means_count_at_once(env, policy, change) -> None:
    obs = tiny.run(env, policy, 3)[-1]
    check(policy, obs)
    stale = tiny.naive(policy, obs)[0]
    change(policy)
    assert (tiny.naive(policy, obs)[0] - stale).abs().max() > 1e-3
    check(policy, obs)


def test_switching_the_adapter_off_and_on_counts_at_once(env, policy) -> None:
    obs = tiny.run(env, policy, 3)[-1]
    check(policy, obs)
    stale = tiny.naive(policy, obs)[0]
    with policy.reference():
        assert (tiny.naive(policy, obs)[0] - stale).abs().max() > 1e-3
        check(policy, obs)
    torch.testing.assert_close(tiny.naive(policy, obs)[0], stale)
    check(policy, obs)


def test_a_copy_of_a_policy_notices_its_own_training(env, policy) -> None:
    obs = tiny.run(env, policy, 3)[-1]
    check(policy, obs)
    twin = copy.deepcopy(policy)
    check(twin, obs)
    optimizer = torch.optim.Adam([p for p in twin.parameters() if p.requires_grad], lr=0.05, fused=True)
    loss(twin, obs).backward()
    optimizer.step()
    check(twin, obs)
    check(policy, obs)


def test_inference_mode_may_come_and_go(env, policy) -> None:
    obs = tiny.run(env, policy, 3)[-1]
    for inside in (True, False, True):
        with torch.inference_mode(inside):
            check(policy, obs)
        policy.forget()


def test_another_policys_training_does_not_drop_the_caches(env, policy, tiny_model) -> None:
    other = tiny.make_policy(env, tiny_model)
    obs = tiny.run(env, policy, 3)[-1]
    check(policy, obs)
    engine = policy._engines["rollout"]
    loss(other, obs).backward()
    other.optimizer.step()
    before = engine.tokens_run
    with torch.no_grad():
        policy(tiny.tensors(obs))
    assert engine.tokens_run - before == 4


# -------------------------------------------------------------------- other calls in between


def test_questions_with_other_rows_in_between_change_nothing(env, tiny_model) -> None:
    def play(disturb: bool) -> list[list[int]]:
        policy = tiny.make_policy(env, tiny_model)
        env.seed(3)
        obs, taken = env.reset(), []
        for _ in range(10):
            with torch.no_grad():
                actions, values, log_probs = policy(tiny.tensors(obs))
                if disturb:
                    few = {key: value[1:3] for key, value in obs.items()}
                    policy.predict(few, deterministic=True)
                    policy.predict({key: value[0] for key, value in obs.items()}, deterministic=True)
                    policy.predict_values(tiny.tensors(few))
                    policy.predict_values(tiny.tensors({key: value[:1] for key, value in obs.items()}))
                    policy.act(obs, np.array([2]), deterministic=True)
            taken.append([*actions.tolist(), *values[:, 0].tolist(), *log_probs.tolist()])
            obs, *_ = env.step(actions.numpy())
        return taken

    assert play(disturb=False) == play(disturb=True)


@pytest.mark.parametrize("rows", [2, 3])
def test_an_evaluation_in_the_middle_of_a_rollout_leaves_training_as_it_was(tiny_model, tmp_path, rows) -> None:
    def train(evaluate: bool) -> dict[str, torch.Tensor]:
        env = tiny.make_env(tiny_model, tmp_path, n_envs=3)
        model = PPO(
            LLMPolicy,
            env,
            n_steps=8,
            batch_size=8,
            n_epochs=2,
            gamma=1.0,
            seed=5,
            rollout_buffer_class=SequenceRolloutBuffer,
            policy_kwargs={"model": tiny_model, "lora": 4},
        )
        tiny.perturb(model.policy)
        callback = None
        if evaluate:
            other = tiny.make_env(tiny_model, tmp_path, n_envs=rows, seed=9)
            callback = EvalCallback(other, eval_freq=4, n_eval_episodes=2, deterministic=True, verbose=0)
        model.learn(3 * 8 * 3, callback=callback)
        if callback is not None:
            assert callback.n_calls >= 5 * 4 and np.isfinite(callback.last_mean_reward)
        return tiny.trained(model.policy)

    without, with_ = train(evaluate=False), train(evaluate=True)
    assert all(torch.equal(value, with_[name]) for name, value in without.items())


# -------------------------------------------------------------------- a fresh policy


def test_a_fresh_adapter_leaves_the_model_as_it_is_and_values_are_zero(env, tiny_model) -> None:
    policy = LLMPolicy(env.observation_space, env.action_space, schedule, model=tiny_model, lora=4)
    obs = tiny.tensors(env.reset())
    with torch.no_grad():
        now = policy.get_distribution(obs).distribution.logits
        assert (policy.predict_values(obs) == 0).all()
        with policy.reference():
            assert torch.equal(policy.get_distribution(obs).distribution.logits, now)


def test_only_adapters_and_the_value_head_are_trained(policy) -> None:
    names = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("value_head") for name in names)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in names if "lora_" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_without_lora_every_weight_is_trained(env, tiny_model) -> None:
    policy = tiny.make_policy(env, tiny_model, lora=None)
    assert all(p.requires_grad for p in policy.parameters())
    obs = tiny.run(env, policy, 3)[-1]
    check(policy, obs)
    loss(policy, obs).backward()
    policy.optimizer.step()
    check(policy, obs)
    with pytest.raises(LLMGymError, match="no reference model"), policy.reference():
        pass
    before = policy.lm.state_dict()["model.embed_tokens.weight"].clone()
    policy.keep_reference()
    with torch.no_grad():
        policy.lm.model.embed_tokens.weight.add_(1.0)
    with policy.reference():
        assert torch.equal(policy.lm.model.embed_tokens.weight, before)
    assert torch.equal(policy.lm.model.embed_tokens.weight, before + 1)


def test_the_last_layers_alone_are_trained(env, tiny_model) -> None:
    policy = tiny.make_policy(env, tiny_model, lora=None, last_layers=1)
    names = [name for name, p in policy.lm.named_parameters() if p.requires_grad]
    assert names and all("layers.1." in name for name in names)
    obs = tiny.run(env, policy, 3)[-1]
    check(policy, obs)
    for wrong in (0, 3):
        with pytest.raises(LLMGymError, match=f"last_layers={wrong}: the model has 2 layers"):
            tiny.make_policy(env, tiny_model, lora=None, last_layers=wrong)
    with pytest.raises(LLMGymError, match="trains whole layers and no adapters; pass lora=None"):
        tiny.make_policy(env, tiny_model, last_layers=1)


def test_optimisers_go_by_name(env, tiny_model) -> None:
    found = [type(tiny.make_policy(env, tiny_model, optimizer_class=n).optimizer) for n in ("adam", "adamw", "rmsprop")]
    assert found == [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop]
    with pytest.raises(LLMGymError, match="optimizer_class='adagrad' is unknown; expected one of adamw, adam, rmsprop"):
        tiny.make_policy(env, tiny_model, optimizer_class="adagrad")


def test_values_and_log_probabilities_are_float32(env, policy) -> None:
    obs = tiny.tensors(env.reset())
    actions, values, log_probs = policy(obs)
    assert (actions.dtype, values.dtype, log_probs.dtype) == (torch.int64, torch.float32, torch.float32)
    assert (actions.shape, values.shape, log_probs.shape) == ((4,), (4, 1), (4,))


def test_dropout_stays_off_in_training_mode(policy) -> None:
    policy.set_training_mode(True)
    assert not any(module.training for module in policy.modules())


# -------------------------------------------------------------------- saving


def test_the_state_dict_holds_what_is_trained_and_nothing_else(env, policy, tiny_model) -> None:
    names = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert set(policy.state_dict()) == names
    other = LLMPolicy(env.observation_space, env.action_space, schedule, model=tiny_model, lora=4)
    other.load_state_dict(policy.state_dict())
    obs = env.reset()
    with torch.no_grad():
        for left, right in zip(tiny.naive(policy, obs), tiny.naive(other, obs), strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("lora", [2, 8, None])
def test_a_state_of_another_rank_is_an_error(env, policy, tiny_model, lora) -> None:
    other = LLMPolicy(env.observation_space, env.action_space, schedule, model=tiny_model, lora=lora)
    before = tiny.trained(other)
    with pytest.raises(LLMGymError, match="do not fit this policy.*lora"):
        other.load_state_dict(policy.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT
def test_peft_loads_the_saved_adapter(env, policy, tiny_model, tmp_path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, policy.lm(ids).logits, **CLOSE)
    again = LLMPolicy(
        env.observation_space, env.action_space, schedule, model=tiny_model, adapter=str(tmp_path / "adapter")
    )
    with torch.no_grad():
        torch.testing.assert_close(again.lm(ids).logits, policy.lm(ids).logits, **CLOSE)
    assert any("lora_A" in name for name in again.state_dict())  # it goes on training


# -------------------------------------------------------------------- the decoder


def test_plain_lora_on_a_cpu_decodes_with_packed_weights(env, policy) -> None:
    obs = tiny.run(env, policy, 2)[-1]
    assert any(isinstance(module, PackedLinear) for module in policy._engines["rollout"].backbone.modules())
    assert not any(isinstance(module, PackedLinear) for module in policy.modules())  # training keeps its own
    check(policy, obs)


def test_the_decoder_shares_what_it_does_not_pack(policy) -> None:
    decoder = Decoder(policy.backbone)
    mine = {p.data_ptr() for p in policy.parameters()}
    assert {p.data_ptr() for p in decoder.backbone.parameters()} <= mine


def save_adapter(model: str, folder: Path, **config: Any) -> None:
    """Write an adapter that PEFT made, and that does something."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2, task_type="CAUSAL_LM", **config))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(folder, save_embedding_layers=False)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT
def test_an_adapter_that_cannot_be_used_is_an_error(env, tiny_model, tmp_path) -> None:
    def use(folder: Path) -> None:
        LLMPolicy(env.observation_space, env.action_space, schedule, model=tiny_model, adapter=str(folder))

    with pytest.raises(LLMGymError, match="holds no adapter_config.json: give one of a PEFT adapter"):
        use(tmp_path / "nowhere")
    save_adapter(tiny_model, tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(LLMGymError, match="changes the output layer, which is not supported"):
        use(tmp_path / "head")
    save_adapter(tiny_model, tmp_path / "first", target_modules=["q_proj"], layers_to_transform=[0])
    tensors = load_file(tmp_path / "first" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    (tmp_path / "first" / "adapter_config.json").write_text(json.dumps({**config, "layers_to_transform": None}))
    with pytest.raises(LLMGymError, match="does not fit the model"):
        use(tmp_path / "first")
    (tmp_path / "first" / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "first" / "adapter_model.bin")
    with pytest.raises(LLMGymError, match="holds no adapter_model.safetensors"):
        use(tmp_path / "first")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed but")  # what cannot be merged is the point
@pytest.mark.filterwarnings("ignore:Adapter 'default'. .* have invalid shape")  # PEFT, of biases as it saves them
@pytest.mark.parametrize("kind", ["use_dora", "lora_bias"])
def test_an_adapter_that_cannot_be_packed_decodes_as_it_is(env, tiny_model, tmp_path, kind) -> None:
    save_adapter(tiny_model, tmp_path / "adapter", target_modules="all-linear", **{kind: True})
    policy = LLMPolicy(
        env.observation_space, env.action_space, schedule, model=tiny_model, adapter=str(tmp_path / "adapter")
    )
    check(policy, tiny.run(env, policy, 3)[-1])
    assert policy._decoder is None


@pytest.mark.models
def test_the_adapters_base_is_the_public_model_and_no_path(tmp_path) -> None:
    env = tiny.make_env("smollm2-135m", tmp_path, n_envs=1)
    policy = LLMPolicy(env.observation_space, env.action_space, schedule, model="smollm2-135m", lora=2)
    policy.save_pretrained(tmp_path / "adapter")
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for file in (tmp_path / "adapter").iterdir():
        assert str(Path.home()).encode() not in file.read_bytes()
    # Thirty layers and 49,000 tokens: how a CPU orders its sums shows in the fifth digit.
    check(policy, env.reset(), {"atol": 1e-3, "rtol": 1e-4})


# -------------------------------------------------------------------- errors


def test_another_tokenizer_is_an_error(env, tiny_model, tmp_path) -> None:
    from transformers import AutoTokenizer

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    words = vocabulary["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(LLMGymError, match="number tokens differently"):
        LLMPolicy(env.observation_space, env.action_space, schedule, model=str(other))


def test_an_encoder_decoder_is_an_error(env, tiny_model, tmp_path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path / "t5"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("model.safetensors", "*config.json"))
    shutil.copy(Path(tiny_model, "tokenizer_config.json"), folder)
    config = T5Config(vocab_size=328, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    with pytest.raises(LLMGymError, match="encoder-decoder"):
        LLMPolicy(env.observation_space, env.action_space, schedule, model=str(folder))


def test_a_model_with_too_few_logits_is_an_error(env, tiny_model) -> None:
    larger = spaces.Discrete(1000)
    with pytest.raises(LLMGymError, match="328 logits for the environment's 1000 tokens"):
        LLMPolicy(env.observation_space, larger, schedule, model=tiny_model)


def test_a_context_longer_than_the_model_reads_is_an_error(tiny_model, tmp_path) -> None:
    env = tiny.make_env(tiny_model, tmp_path, n_envs=1, max_prompt_tokens=1100)
    with pytest.raises(LLMGymError, match="the model has 1024 positions, and the context takes 11"):
        tiny.make_policy(env, tiny_model)


def test_other_spaces_are_an_error(env, tiny_model) -> None:
    with pytest.raises(LLMGymError, match="needs a text environment"):
        LLMPolicy(spaces.Box(0, 1, (3,)), env.action_space, schedule, model=tiny_model)
    with pytest.raises(LLMGymError, match="needs a text environment"):
        LLMPolicy(env.observation_space, spaces.Box(0, 1, (3,)), schedule, model=tiny_model)


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_a_temperature_that_is_not_positive_is_an_error(env, tiny_model, temperature) -> None:
    with pytest.raises(LLMGymError, match="must be positive"):
        LLMPolicy(env.observation_space, env.action_space, schedule, model=tiny_model, temperature=temperature)


def test_state_dependent_exploration_is_an_error(env, tiny_model) -> None:
    with pytest.raises(LLMGymError, match="use_sde"):
        LLMPolicy(env.observation_space, env.action_space, schedule, model=tiny_model, use_sde=True)


def test_a_base_in_bf16_keeps_what_is_trained_and_the_log_probabilities_in_float32(tiny_model, tmp_path) -> None:
    env = tiny.make_env(tiny_model, tmp_path)
    policy = tiny.make_policy(env, tiny_model)
    obs = env.reset()
    rows = np.arange(env.num_envs)
    _, expected = policy.act(obs, rows, deterministic=True)
    policy._set_base_dtype(torch.bfloat16)  # what `.to("cuda")` does
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in policy.lm.parameters() if not p.requires_grad} == {torch.bfloat16}
    _, log_probs = policy.act(obs, rows, deterministic=True)
    assert log_probs.dtype == np.float32
    np.testing.assert_allclose(log_probs, expected, atol=0.05)
    values, chosen, entropy = policy.evaluate_actions(tiny.tensors(obs), torch.zeros(len(rows)))
    assert values.dtype == chosen.dtype == entropy.dtype == torch.float32
