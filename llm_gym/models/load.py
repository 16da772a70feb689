"""Loading tokenizers and models by name: a catalogue name, a local folder or GGUF file, or a hub id."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from llm_gym.errors import LLMGymError
from llm_gym.models.bundled import BUNDLED, place
from llm_gym.models.catalogue import CATALOGUE, closest, names
from llm_gym.models.fetch import fetch, one_line, quiet_transformers, read_gguf, read_marker
from llm_gym.models.version import stamp

T = TypeVar("T")

_SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model")
_WHAT = {
    "AutoModel": "a text encoder",
    "AutoModelForCausalLM": "a causal language model",
    "AutoModelForSequenceClassification": "a sequence classifier",
}
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_lock = threading.RLock()  # so that two threads that ask for the same shared model load it once


def resolve(name: str) -> str:
    """Turn what users type into what `from_pretrained` reads; a catalogue model is fetched if need be.

    Args:
        name: A catalogue or bundled name, a local folder (safetensors, or one GGUF file), a `.gguf` file, or a hub id.

    Returns:
        A local folder, a local `.gguf` file, or the hub id unchanged. The hub is not asked.

    Raises:
        LLMGymError: If the name is a path that does not exist, or looks like a slip for a catalogue name.
    """
    if name in CATALOGUE:
        return str(fetch(name))
    if name in BUNDLED:
        return str(place(name))
    path = Path(name).expanduser()
    if name.endswith(".gguf") and path.is_file():
        return str(path)
    if name and path.is_dir():
        return _in_folder(name, path)
    looks_like_path = name.endswith(".gguf") or name.startswith((".", "~", os.sep)) or len(path.parts) > 2
    if not name or path.exists() or looks_like_path:
        what = "is not a model folder or a .gguf file" if name and path.exists() else "does not exist"
        raise LLMGymError(
            f"model {name!r} {what}: give a folder with config.json and safetensors weights, a .gguf file, "
            f"a hub id such as 'owner/name', or a catalogue name ({names()})"
        )
    if "/" not in name and (guess := closest(name)):
        raise LLMGymError(f"unknown model {name!r}: did you mean {guess!r}? The catalogue has {names()}")
    return name


def hub_id(name: str) -> str:
    """The hub id by which a model is named to others, never a cache path.

    Args:
        name: Anything `resolve` takes; nothing is fetched.

    Returns:
        The hub id of a catalogue name or of a folder that `fetch` made; any other name unchanged.
    """
    if name in CATALOGUE:
        return CATALOGUE[name].hub_id
    marker = read_marker(Path(name).expanduser())
    return str(marker["hub_id"]) if marker and "hub_id" in marker else name


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device for a name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        LLMGymError: If torch does not know the device or this machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise LLMGymError(f"unknown device {device!r}: use 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise LLMGymError(
            f"device {str(device)!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use 'auto' or 'cpu', or install a CUDA build of torch"
        )
    return picked


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer; one object per name and process, so treat it as read-only.

    Args:
        name: Anything `resolve` takes.

    Returns:
        The transformers tokenizer.

    Raises:
        LLMGymError: If it cannot be loaded, or holds far fewer tokens than its sentencepiece model file.
    """
    resolved = resolve(name)
    with _lock:
        return _tokenizer(name, resolved, stamp(resolved))


def load_causal_lm(name: str, device: str | torch.device = "auto", dtype: torch.dtype | str | None = None) -> Any:
    """Load a fresh causal language model, in evaluation mode (dropout off), on the device.

    Only safetensors and GGUF weights are read, and code that comes with a model is never run.

    Args:
        name: Anything `resolve` takes.
        device: See `pick_device`.
        dtype: Of the weights, e.g. `torch.float32` or `"bfloat16"`; if None, bfloat16 on CUDA, else float32.

    Returns:
        The transformers model; its logits may be wider than the tokenizer.

    Raises:
        LLMGymError: If it cannot be loaded, is no causal language model, or lacks some of its weights.
    """
    if name in CATALOGUE and CATALOGUE[name].kind != "causal":
        causal = ", ".join(card.name for card in CATALOGUE.values() if card.kind == "causal")
        raise LLMGymError(f"{name!r} is an embedding model, not a language model: use e.g. {causal}")
    where = pick_device(device)
    return _model(name, resolve(name), "AutoModelForCausalLM", _dtype(dtype, where)).to(where).eval()


def shared_causal_lm(name: str, device: str | torch.device = "auto", dtype: torch.dtype | str | None = None) -> Any:
    """Load a causal language model for reading only; one frozen object per name, device, dtype and process.

    Takes, returns and raises what `load_causal_lm` does.
    """
    resolved, where = resolve(name), pick_device(device)
    with _lock:
        return _shared_causal_lm(name, resolved, stamp(resolved), where, _dtype(dtype, where))


def shared_adapted_lm(
    name: str, adapter: str, device: str | torch.device = "auto", dtype: torch.dtype | str | None = None
) -> Any:
    """Load a causal language model with a PEFT adapter merged into it, for reading only; shared as the others are.

    Args:
        name: Anything `resolve` takes.
        adapter: Local folder with `adapter_config.json` and `adapter_model.safetensors`.
        device: See `pick_device`.
        dtype: See `load_causal_lm`.

    Raises:
        LLMGymError: The model cannot be loaded, or the adapter is not there, is pickled, or is another model's.
    """
    resolved, where, folder = resolve(name), pick_device(device), Path(adapter).expanduser()
    stamps = stamp(resolved), stamp(str(folder))
    with _lock:
        return _shared_adapted_lm(name, resolved, str(folder), stamps, where, _dtype(dtype, where))


def load_encoder(name: str, device: str | torch.device = "auto") -> Any:
    """Load the bare encoder of an embedding model in float32, for the caller alone.

    Args:
        name: Anything `resolve` takes.
        device: See `pick_device`.

    Returns:
        The transformers model, whose `last_hidden_state` [batch, length, width] the caller pools.

    Raises:
        LLMGymError: If it cannot be loaded or is an encoder-decoder.
    """
    return _model(name, resolve(name), "AutoModel", torch.float32).to(pick_device(device)).eval()


def shared_encoder(name: str, device: str | torch.device = "auto", adapter: str | None = None) -> Any:
    """Load what `load_encoder` does for reading only; one frozen object per name, device, adapter and process.

    Args:
        name: Anything `resolve` takes.
        device: See `pick_device`.
        adapter: Local folder of a PEFT adapter, which is merged into it.

    Raises:
        LLMGymError: If it cannot be loaded or is an encoder-decoder, or the adapter does not fit.
    """
    resolved, where = resolve(name), pick_device(device)
    with _lock:
        return _shared_encoder(name, resolved, adapter, (stamp(resolved), stamp(adapter) if adapter else ""), where)


def shared_classifier(name: str, device: str | torch.device = "auto") -> Any:
    """Load a sequence classifier in float32; one frozen object per name, device and process.

    Args:
        name: Anything `resolve` takes.
        device: See `pick_device`.

    Returns:
        The transformers model, `AutoModelForSequenceClassification`; `config.id2label` names its labels.

    Raises:
        LLMGymError: If it cannot be loaded or is no classifier.
    """
    resolved, where = resolve(name), pick_device(device)
    with _lock:
        return _shared_classifier(name, resolved, stamp(resolved), where)


def stop_ids(name: str, tokenizer: Any) -> tuple[int, ...]:
    """All token ids that end a text of this model, ascending.

    Many models have several: the tokenizer's end of text, and others in the generation config or the config.

    Args:
        name: The model, anything `resolve` takes.
        tokenizer: Its tokenizer; ids that it does not have are left out.
    """
    resolved = resolve(name)
    with _lock:
        declared = _declared_eos(name, resolved, stamp(resolved))
    own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    return tuple(sorted(i for i in {*declared, *own} if 0 <= i < len(tokenizer)))


def fingerprint(tokenizer: Any) -> str:
    """A digest that is equal exactly when two tokenizers turn the same text into the same ids and back.

    It covers every token and its id, the merges, the normaliser, and the ids that begin and end a text. It
    leaves out paths, padding and truncation, which calls change in passing, and the pad token, which people
    set after loading.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    digest.update(repr([tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]).encode())
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        # The state is one JSON object that opens with version, truncation and padding; every token follows.
        # Parsing it would take half a second for 50,000 tokens.
        state = backend.to_str()
        digest.update(state[state.index('"added_tokens":') :].encode())
    else:
        digest.update(repr([type(tokenizer).__name__, *sorted(tokenizer.get_vocab().items())]).encode())
        if (pieces := getattr(tokenizer, "sp_model", None)) is not None:
            digest.update(pieces.serialized_model_proto())
    return digest.hexdigest()


def _in_folder(name: str, folder: Path) -> str:
    """The folder itself, or the one GGUF file that stands in for weights and config."""
    ggufs = sorted(folder.glob("*.gguf"))
    if not ggufs or (folder / "config.json").is_file() or any(folder.glob("*.safetensors")):
        return str(folder)
    if len(ggufs) > 1:
        raise LLMGymError(
            f"the folder {name!r} holds {len(ggufs)} GGUF files: name one of them, e.g. {str(ggufs[0])!r}"
        )
    return str(ggufs[0])


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise LLMGymError(f"unknown dtype {dtype!r}: use 'float32', 'bfloat16' or 'float16'")
    return found


@functools.cache
def _tokenizer(name: str, resolved: str, stamp: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = _attempt(name, resolved, lambda source: AutoTokenizer.from_pretrained(**source))
    _check_complete(name, resolved, tokenizer)
    return tokenizer


@functools.cache
def _shared_causal_lm(name: str, resolved: str, stamp: str, device: torch.device, dtype: torch.dtype) -> Any:
    return load_causal_lm(name, device, dtype).requires_grad_(False)


@functools.cache
def _shared_adapted_lm(
    name: str, resolved: str, folder: str, stamps: tuple[str, str], device: torch.device, dtype: torch.dtype
) -> Any:
    found = adapted(load_causal_lm(name, device, dtype), name, folder)
    return found.merge_and_unload().eval().requires_grad_(False)


def adapted(model: Any, name: str, adapter: str, trainable: bool = False) -> Any:
    """Return a PEFT model: `model` with the adapter of a local folder. Nothing is unpickled, and no hub is asked.

    Raises:
        LLMGymError: The adapter is not there, is pickled, or is not of the model, whose `name` the message says.
    """
    from peft import PeftModel

    folder = Path(adapter).expanduser()
    if lacking := [file for file in ADAPTER_FILES if not (folder / file).is_file()]:
        raise LLMGymError(f"the folder {adapter!r} holds no {lacking[0]}: give one of a PEFT adapter, in safetensors")
    try:
        with quiet_peft():
            warnings.filterwarnings("error", "Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except Exception as exc:  # whatever PEFT and safetensors raise, the adapter does not fit
        raise LLMGymError(
            f"the adapter in {adapter!r} does not fit the model {name!r} ({one_line(exc, 200)}): name the model that "
            "it was trained on"
        ) from exc


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Hold back what PEFT causes transformers to warn about and a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


@functools.cache
def _shared_encoder(
    name: str, resolved: str, adapter: str | None, stamps: tuple[str, str], device: torch.device
) -> Any:
    encoder = load_encoder(name, device)
    if adapter is not None:
        encoder = adapted(encoder, name, adapter).merge_and_unload()
    return encoder.eval().requires_grad_(False)


@functools.cache
def _shared_classifier(name: str, resolved: str, stamp: str, device: torch.device) -> Any:
    model = _model(name, resolved, "AutoModelForSequenceClassification", torch.float32)
    return model.to(device).eval().requires_grad_(False)


@functools.cache
def _declared_eos(name: str, resolved: str, stamp: str) -> frozenset[int]:
    from transformers import GenerationConfig, PreTrainedConfig

    config = _attempt(name, resolved, lambda source: PreTrainedConfig.get_config_dict(**source)[0])
    found = [config.get("eos_token_id"), (config.get("text_config") or {}).get("eos_token_id")]
    if not resolved.endswith(".gguf"):
        with contextlib.suppress(OSError):  # a model need not have one
            offline = _source(resolved)["local_files_only"]
            found.append(GenerationConfig.from_pretrained(resolved, local_files_only=offline).eos_token_id)
    flat = [i for entry in found for i in (entry if isinstance(entry, list | tuple) else [entry])]
    return frozenset(int(i) for i in flat if i is not None)


def _model(name: str, resolved: str, auto_class: str, dtype: torch.dtype) -> Any:
    """A model on the CPU; its config is looked at first, so that a wrong kind costs no reading of weights."""
    import transformers

    if os.path.isdir(resolved):
        _check_folder(name, Path(resolved))
    config = _attempt(name, resolved, lambda source: transformers.AutoConfig.from_pretrained(**source))
    if config.is_encoder_decoder and auto_class != "AutoModelForSequenceClassification":
        raise LLMGymError(
            f"{name!r} is an encoder-decoder model ({config.model_type}), which is not supported yet: "
            "use a decoder-only language model or an encoder"
        )
    if resolved.endswith(".gguf") and auto_class == "AutoModelForCausalLM":
        return _attempt(name, resolved, lambda source: read_gguf(Path(resolved), dtype))
    auto = getattr(transformers, auto_class)
    model, info = _attempt(name, resolved, lambda source: _from_pretrained(auto, source, dtype))
    # transformers fills what is missing with random numbers; only a classifier uses its pooler.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key or auto_class != "AutoModel")
    if missing:
        raise LLMGymError(
            f"{name!r} has no weights for {len(missing)} tensors of {type(model).__name__} "
            f"(e.g. {missing[0]}): give a complete checkpoint of {_WHAT[auto_class]}"
        )
    return model


def _from_pretrained(auto: Any, source: dict[str, Any], dtype: torch.dtype) -> Any:
    options = {**source, "dtype": dtype, "output_loading_info": True}
    if "gguf_file" not in source:
        options["use_safetensors"] = True
    try:
        return auto.from_pretrained(**options, attn_implementation="sdpa")
    except ValueError as exc:
        if "scaled_dot_product_attention" not in str(exc):
            raise
        return auto.from_pretrained(**options, attn_implementation="eager")


def _source(resolved: str) -> dict[str, Any]:
    """Keyword arguments for any `from_pretrained`; only a hub id goes to the network, if the hub answers."""
    path = Path(resolved)
    if path.is_file():
        folder = str(path.absolute().parent)
        place = {"pretrained_model_name_or_path": folder, "gguf_file": path.name, "local_files_only": True}
    else:
        offline = path.is_dir() or not _hub_answers()
        place = {"pretrained_model_name_or_path": resolved, "local_files_only": offline}
    return {**place, "trust_remote_code": False}


_hub_answered = False


def _hub_answers() -> bool:
    """Whether the hub can be reached, found out in seconds; transformers would retry for most of a minute."""
    global _hub_answered
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return False
    if not _hub_answered:
        try:
            get_session().head(constants.ENDPOINT, timeout=10)
            _hub_answered = True
        except Exception:  # whatever the client raises, the hub did not answer
            return False
    return True


def _attempt(name: str, resolved: str, load: Callable[[dict[str, Any]], T]) -> T:
    """Call `load` with the source's keyword arguments; any failure becomes one line that says what to do."""
    source = _source(resolved)
    local = os.path.exists(resolved)
    try:
        # Downloads from the hub keep their progress bars, everything else is quick and quiet.
        with quiet_transformers() if source["local_files_only"] else contextlib.nullcontext():
            return load(source)
    except LLMGymError:
        raise
    except Exception as exc:
        raise _explain(name, local, bool(source["local_files_only"]), exc) from exc


def _explain(name: str, local: bool, offline: bool, exc: Exception) -> LLMGymError:
    said = one_line(exc, 240)
    if "trust_remote_code" in str(exc):
        return LLMGymError(
            f"model {name!r} needs code of its own, which is never run: use a model that transformers knows"
        )
    if local:
        return LLMGymError(
            f"the model in {name!r} could not be loaded: {said}; expected what `save_pretrained` writes "
            "(config.json, model.safetensors, tokenizer files) or a GGUF file"
        )
    twin = next((card.name for card in CATALOGUE.values() if card.hub_id == name), None)
    choice = f"{twin!r}, its quantised copy," if twin else "a catalogue name"
    remedy = f"use {choice} ({names()}) or the path of a local folder"
    if offline:
        return LLMGymError(
            f"model {name!r} is neither in the catalogue nor a local folder nor in the hub's local cache, "
            f"and the Hugging Face hub cannot be reached: {remedy}, or check the network"
        )
    first = str(exc).strip().partition("\n")[0].strip(" .:")[:200] or said
    return LLMGymError(
        f"model {name!r} could not be loaded from the Hugging Face hub ({first}): check the id, run `hf auth login` "
        f"if it is private or gated, or {remedy}"
    )


def _check_folder(name: str, folder: Path) -> None:
    files = {file.name for file in folder.iterdir()}
    if "adapter_config.json" in files and "config.json" not in files:
        raise LLMGymError(
            f"the folder {name!r} holds a PEFT adapter, not a whole model: load its base, "
            "then the adapter with peft.PeftModel.from_pretrained"
        )
    if "config.json" not in files:
        raise LLMGymError(f"the folder {name!r} holds no config.json: give one written by `save_pretrained`")
    pickled = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickled and not any(file.endswith(".safetensors") for file in files):
        raise LLMGymError(
            f"the folder {name!r} has its weights in {pickled[0]}, a pickle, which can run code and is never "
            "read: convert it to safetensors with `save_pretrained`, where you trust the file"
        )


def _check_complete(name: str, resolved: str, tokenizer: Any) -> None:
    """Refuse a tokenizer that silently lost its vocabulary.

    A class that does not find its sentencepiece file falls back to a few special tokens without a word.
    """
    from huggingface_hub import try_to_load_from_cache

    local = os.path.exists(resolved)
    for file in _SENTENCEPIECE_FILES:
        path = os.path.join(resolved, file) if local else try_to_load_from_cache(resolved, file)
        if not isinstance(path, str) or not os.path.isfile(path):
            continue
        pieces = _count_pieces(path)
        if len(tokenizer) < 0.9 * pieces:
            kind = type(tokenizer).__name__
            raise LLMGymError(
                f"the tokenizer of {name!r} loaded with {len(tokenizer)} tokens, but its {file} has {pieces}: "
                f"check tokenizer_class in tokenizer_config.json ({kind} does not read {file})"
            )


def _count_pieces(path: str) -> int:
    import sentencepiece

    try:
        return int(sentencepiece.SentencePieceProcessor(model_file=path).vocab_size())
    except (RuntimeError, OSError):  # tiktoken files go by the same name
        return 0
