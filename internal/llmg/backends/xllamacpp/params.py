"""`ModelOptions` -> llama.cpp's parameters.

What the contract leaves open is decided here:

- `ContextSize` is for each of the slots, which never take room from each other; 0 means 4096.
- `NBatch` is what a cancelled call waits for, at most two of them, because llama.cpp looks between batches only.
  0 means 8 tokens a thread on a CPU: 55 ms on one 2026 server core with a model of 135 M, for a fifth of the speed
  that a batch of 512 has on prompts. With layers on a GPU it means 512.
- `Threads` 0 means all logical CPUs but one: llama.cpp's threads spin, and stall each other when one has to wait.
- `F16Memory` says nothing new: the cache has 16 bits unless `CacheTypeKey` and `CacheTypeValue` say otherwise.

Own keys in `Options`:

| key | default | meaning |
|---|---|---|
| parallel | 4 | slots: calls that are answered at the same time |
| cache_ram | 256 | MiB of RAM for the prompts of earlier calls; 0 for none |
| pooling | the model's, else mean | how Embedding makes one vector: mean, cls, last |
| chat_template | the model's | a Jinja template, or the path of one |
| verbosity | 1 | llama.cpp's log on stderr: 0 nothing, 1 errors, 2 warnings, 3 all about loading, 4 each call |
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xllamacpp

from llmg.backendapi import backend_pb2 as pb
from llmg.backends import options as engine_options

log = logging.getLogger("llmg.backend.xllamacpp")

DEFAULT_CONTEXT = 4096
DEFAULT_PARALLEL = 4
DEFAULT_CACHE_RAM_MIB = 256
BATCH_PER_THREAD = 8
BATCH_ON_GPU = 512
LARGEST_VECTOR_INPUT = 2048  # tokens; a pooled vector needs its whole text in one batch, whose buffers cost memory

OWN_KEYS = frozenset({"parallel", "cache_ram", "pooling", "chat_template", "verbosity"})

Params = Any  # xllamacpp.CommonParams: the package has no type hints


def text_params(options: pb.ModelOptions) -> Params:
    """Parameters for text. Raises ValueError naming the option that can't be used."""
    own = _own(options)
    params = _common(options, own)
    parallel = max(_number(own, "parallel", DEFAULT_PARALLEL), 1)
    params.n_parallel = parallel
    params.n_ctx = (options.ContextSize or DEFAULT_CONTEXT) * parallel
    batch = BATCH_ON_GPU if options.NGPULayers > 0 else BATCH_PER_THREAD * params.cpuparams.n_threads
    params.n_batch = max(options.NBatch or batch, parallel)  # llama.cpp needs one token for each slot
    params.n_ubatch = min(params.n_batch, 512)
    params.cache_ram_mib = _number(own, "cache_ram", DEFAULT_CACHE_RAM_MIB)
    return params


def vector_params(options: pb.ModelOptions) -> Params:
    """Parameters for vectors: one slot whose batch holds a whole text."""
    own = _own(options)
    params = _common(options, own)
    params.embedding = True
    params.n_parallel = 1
    params.n_ctx = params.n_batch = params.n_ubatch = min(options.ContextSize or DEFAULT_CONTEXT, LARGEST_VECTOR_INPUT)
    params.cache_ram_mib = 0
    default = "unspecified" if _says_pooling(params.model.path) else "mean"
    params.pooling_type = _choice(own, "pooling", POOLING, default)
    return params


def _common(options: pb.ModelOptions, own: Mapping[str, str]) -> Params:
    params = xllamacpp.CommonParams()
    params.model.path = _model_file(options)
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.api_keys = [secrets.token_urlsafe(24)]  # llama.cpp always opens its HTTP port: nobody else may use it
    params.ui = False
    params.n_threads_http = 2
    params.endpoint_slots = True
    params.fit_params = False  # take what is asked for, or fail
    params.use_jinja = True
    params.verbosity = _number(own, "verbosity", 1)
    _threads(params, max((os.cpu_count() or 1) - 1, 1))
    for field, setter in FIELDS.items():
        if value := getattr(options, field):
            setter(params, value)
    if template := own.get("chat_template"):
        params.chat_template = _text_or_file(template)
    return params


def _own(options: pb.ModelOptions) -> dict[str, str]:
    own = engine_options.parse(options.Options)
    if unknown := own.keys() - OWN_KEYS:
        log.warning("options that this engine does not know: %s", ", ".join(sorted(unknown)))
    return own


def _model_file(options: pb.ModelOptions) -> str:
    path = Path(options.ModelFile or options.Model)
    if not path.is_file():
        raise ValueError(f"there is no model file {str(path)!r}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{str(path)!r} is not a GGUF file")
    return str(path)


def _says_pooling(path: str) -> bool:
    """Whether the model was made for vectors: then its metadata, at the head of the file, name its pooling."""
    with open(path, "rb") as file:
        return b".pooling_type" in file.read(1 << 20)


def _text_or_file(text: str) -> str:
    return text if "{" in text else Path(text).read_text(encoding="utf-8")


# -- the fields, one row each; a field that is 0, false or empty is left to llama.cpp ----------------------------------


def _number(own: Mapping[str, str], key: str, default: int) -> int:
    try:
        return int(own.get(key) or default)
    except ValueError:
        raise ValueError(f"option {key}: {own[key]!r} is not a whole number") from None


def _choice(own: Mapping[str, str], key: str, table: Mapping[str, Any], default: str) -> Any:
    word = own.get(key) or default
    if word.lower() not in table:
        raise ValueError(f"option {key}: {word!r} is none of {', '.join(sorted(table))}")
    return table[word.lower()]


def _named(enum: Any, prefix: str) -> dict[str, Any]:
    """`{"mean": llama_pooling_type.LLAMA_POOLING_TYPE_MEAN, ...}`."""
    return {member.name.removeprefix(prefix).lower(): member for member in enum}


POOLING = {
    name: value
    for name, value in _named(xllamacpp.llama_pooling_type, "LLAMA_POOLING_TYPE_").items()
    if name in {"unspecified", "mean", "cls", "last"}
}
CACHE_TYPES = _named(xllamacpp.ggml_type, "GGML_TYPE_")
ROPE_SCALING = _named(xllamacpp.llama_rope_scaling_type, "LLAMA_ROPE_SCALING_TYPE_")
FLASH = _named(xllamacpp.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_")
FLASH |= {"on": FLASH["enabled"], "true": FLASH["enabled"], "off": FLASH["disabled"], "false": FLASH["disabled"]}
LOADING = xllamacpp.llama_load_mode


def _plain(name: str, convert: Callable[[Any], Any] = lambda value: value) -> Callable[[Params, Any], None]:
    return lambda params, value: setattr(params, name, convert(value))


def _word(name: str, field: str, table: Mapping[str, Any]) -> Callable[[Params, str], None]:
    return lambda params, word: setattr(params, name, _choice({field: word}, field, table, ""))


def _threads(params: Params, count: int) -> None:
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = count


def _lock(params: Params, _: bool) -> None:
    mapped = params.load_mode == LOADING.LLAMA_LOAD_MODE_MMAP
    params.load_mode = LOADING.LLAMA_LOAD_MODE_MMAP_MLOCK if mapped else LOADING.LLAMA_LOAD_MODE_MLOCK


def _tensor_split(params: Params, shares: str) -> None:
    given = [float(share) for share in shares.split(",")]
    params.tensor_split = given + [0.0] * (len(params.tensor_split) - len(given))


def _mmproj(params: Params, path: str) -> None:
    params.mmproj.path = path


FIELDS: dict[str, Callable[[Params, Any], None]] = {
    "Threads": _threads,
    "NGPULayers": _plain("n_gpu_layers"),
    "MainGPU": _plain("main_gpu", int),
    "TensorSplit": _tensor_split,
    "MMap": _plain("load_mode", lambda _: LOADING.LLAMA_LOAD_MODE_MMAP),
    "MLock": _lock,
    "NUMA": _plain("numa", lambda _: xllamacpp.ggml_numa_strategy.GGML_NUMA_STRATEGY_DISTRIBUTE),
    "RopeFreqBase": _plain("rope_freq_base"),
    "RopeFreqScale": _plain("rope_freq_scale"),
    "RopeScaling": _word("rope_scaling_type", "RopeScaling", ROPE_SCALING),
    "YarnExtFactor": _plain("yarn_ext_factor"),
    "YarnAttnFactor": _plain("yarn_attn_factor"),
    "YarnBetaFast": _plain("yarn_beta_fast"),
    "YarnBetaSlow": _plain("yarn_beta_slow"),
    "FlashAttention": _word("flash_attn_type", "FlashAttention", FLASH),
    "NoKVOffload": _plain("no_kv_offload"),
    "CacheTypeKey": _word("cache_type_k", "CacheTypeKey", CACHE_TYPES),
    "CacheTypeValue": _word("cache_type_v", "CacheTypeValue", CACHE_TYPES),
    "MMProj": _mmproj,
}
