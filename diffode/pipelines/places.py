"""A pipeline of diffusers from FOLDER, as save_pretrained writes it, or from hub:NAME; nothing in the folder is run.

    model_index.json                       the class of the pipeline, and of each of its parts
    PART/*.json, *.txt, *.model            configurations and vocabularies
    PART/*.safetensors                     weights

Every class is one of diffusers, transformers or diffode, by the name that these give it; a folder's own code, weights that would
be unpickled, and configurations that make a library import or fetch more are refused before a class is called. Parts that judge
images (SKIPPED) are left out, as pipelines allow. Takes the optional diffusers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from diffode.errors import InputError, in_words, one_line, shown
from diffode.models import diffusers_models
from diffode.reading import read_json, sha256_of

INDEX, WEIGHTS = "model_index.json", ".safetensors"
DATA = (".json", ".txt", ".model")  # beside weights, what parts are read from
LIBRARIES = ("diffusers", "transformers", "diffode")
SKIPPED = ("safety_checker", "feature_extractor")
MOST_JSON = 64 * 2**20  # bytes: vocabularies have up to 33 MiB
MOST = {"layer": 1000, "blocks": 1000, "depth": 1000, "sample_size": 16384, "train_timesteps": 100_000}  # of numbers so named
HUGE = 2**31  # of all others
DIGITS = 31  # of 10³⁰, which tokenizers have for no limit
FORBIDDEN = ("auto_map", "quantization_config", "kernel_config", "custom_pipeline", "use_pretrained_backbone")
FETCHED = re.compile(r"attn_implementation|experts_implementation")  # whose values may name code of the hub, OWNER/NAME
NAME = re.compile(r"(rk:)?[\w+.-]+")  # of a solver; MODULE:NAME would be imported
FILES = [INDEX, *(f"*/*{suffix}" for suffix in (*DATA, WEIGHTS))]
VARIANTS = ["*.fp16.*", "*.bf16.*", "*non_ema*", *(f"{part}/*" for part in SKIPPED)]


def load(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, str]:
    """The pipeline of a folder or hub:NAME on the CPU, its weights in `dtype`, and the SHA-256 of all files that were read.

    InputError for what is no pipeline, or one that the module's docstring refuses, with the reason.
    """
    on_hub = name.removeprefix("hub:") if name.startswith("hub:") else ""
    if not on_hub and not (Path(name) / INDEX).is_file():
        raise InputError(
            f"no pipeline {shown(name)}: expected a folder with {INDEX}, as save_pretrained of diffusers writes it, or hub:NAME"
        )
    folder = diffusers_models.fetch(on_hub, FILES, VARIANTS) if on_hub else Path(name)
    diffusers_models.require()
    diffusers_models.require("transformers")
    try:
        with _silent():
            return _load(folder, dtype)
    except InputError as error:
        raise InputError(f"the pipeline {one_line(name)}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # of files that do not fit each other, libraries raise all kinds
        raise InputError(f"the pipeline {one_line(name)} cannot be loaded: {in_words(error)}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bars of the libraries, and without their warnings, in which names of the files stand."""
    import diffusers
    import transformers

    loggings = diffusers.utils.logging, transformers.utils.logging
    before = [(logging, logging.get_verbosity(), logging.is_progress_bar_enabled()) for logging in loggings]
    try:
        for logging in loggings:
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        yield
    finally:
        for logging, verbosity, bars in before:
            logging.set_verbosity(verbosity)
            logging.enable_progress_bar() if bars else None


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, str]:
    index = _json(folder / INDEX)
    kind = _pipeline_class(index.get("_class_name"))
    optional = set(SKIPPED) & set(kind._optional_components)
    parts = {name: value for name, value in index.items() if isinstance(value, list) and name not in optional}
    classes = {name: _part_class(name, value) for name, value in parts.items() if value != [None, None]}
    digest = hashlib.sha256()
    for file in [folder / INDEX, *(file for name in classes for file in _files(folder, name))]:
        if file.suffix == ".json" and ("config" in file.name or "index" in file.name):  # others are vocabularies
            _check(file, _json(file))
        digest.update(f"{file.relative_to(folder)} {sha256_of(file)}\n".encode())
    settings = {name: value for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)}
    if unknown := sorted(
        {*settings, *parts} - {*map(str, kind._get_signature_keys(kind)[0]), *kind._get_signature_keys(kind)[1]}
    ):
        raise InputError(f"{INDEX} has {shown(unknown[0])}, which a {kind.__name__} does not take")
    loaded = {name: _part(folder / name, kind, dtype) for name, kind in classes.items()}
    given = {**settings, **dict.fromkeys([*optional, *parts]), **loaded}
    if "requires_safety_checker" in settings:
        given["requires_safety_checker"] = False
    pipeline = kind(**given)
    pipeline.set_progress_bar_config(disable=True)
    for part in loaded.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return pipeline, digest.hexdigest()


def _json(file: Path) -> dict[str, Any]:
    """The object of a JSON file."""
    value = read_json(
        file, "configuration of diffusers", "what save_pretrained writes", most=MOST_JSON, infinite=True, digits=DIGITS
    )
    if not isinstance(value, dict) and file.name in (INDEX, "config.json", "scheduler_config.json"):
        raise InputError(f"{file.name} holds no JSON object")
    return value


def _pipeline_class(name: Any) -> Any:
    """The class of a pipeline by its name in diffusers."""
    import diffusers

    found = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    base = diffusers.DiffusionPipeline
    if not (isinstance(found, type) and issubclass(found, base) and found is not base):
        raise InputError(f"its class is {shown(name)}, which is no pipeline of diffusers: code of others is not run")
    return found


def _part_class(name: str, value: list[Any]) -> Any:
    """The class of a part, [library, class] in model_index.json."""
    import diffusers
    import transformers

    import diffode

    if len(value) != 2 or not all(isinstance(word, str) and word.isidentifier() for word in value):
        raise InputError(f"its {shown(name)} is {shown(value)}, where [library, class] is expected")
    if not name.isidentifier():
        raise InputError(f"it has a part {shown(name)}, which is no name")
    library, kind = value
    modules: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers, "diffode": diffode}
    module = modules.get(library) or getattr(diffusers.pipelines, library, None)
    found = getattr(module, kind, None) if module in modules.values() or isinstance(module, ModuleType) else None
    if not (isinstance(found, type) and found.__module__.partition(".")[0] in LIBRARIES and issubclass(found, _bases())):
        raise InputError(
            f"its {name} is {library}.{kind}, and known are networks, schedulers and tokenizers of {', '.join(LIBRARIES)}: "
            "code of others is not run"
        )
    return found


def _bases() -> tuple[type, ...]:
    import diffusers
    import transformers

    read_as_data = transformers.PreTrainedTokenizerBase, transformers.ProcessorMixin, transformers.FeatureExtractionMixin
    processors = (transformers.image_processing_base.ImageProcessingMixin,)
    return (diffusers.ModelMixin, diffusers.SchedulerMixin, transformers.PreTrainedModel, *read_as_data, *processors)


def _files(folder: Path, part: str) -> Iterator[Path]:
    """The files of a part, in the order of their names; InputError for weights in another format only, and for adapters."""
    place = folder / part
    if not place.is_dir():
        raise InputError(f"it has no folder {part}, which {INDEX} names")
    files = sorted(file for file in place.iterdir() if file.is_file() and not any(file.match(each) for each in VARIANTS[:3]))
    suffixes = {file.suffix for file in files}
    if WEIGHTS not in suffixes and suffixes & {".bin", ".pt", ".pth", ".ckpt", ".pkl"}:
        raise InputError(
            f"the weights of {part} would be unpickled, which may run code: if you trust them, load the pipeline with diffusers "
            "and write it with save_pretrained"
        )
    if any(file.name == "adapter_config.json" for file in files):
        raise InputError(f"{part} is an adapter, which names a network elsewhere: merge it, and write it with save_pretrained")
    yield from (file for file in files if file.suffix in (*DATA, WEIGHTS))


def _check(file: Path, value: Any, name: str = "") -> None:
    """InputError for a value of a configuration that makes a library import, fetch or build what nobody asked for."""
    where = f"{file.parent.name}/{file.name}"
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key in FORBIDDEN and each:
                raise InputError(f"{where} has {key}, with which code is imported or fetched: expected are weights as they are")
            if FETCHED.search(key) and not (each is None or (isinstance(each, str) and each.isidentifier())):
                raise InputError(f"{where} has {shown(key)} {shown(each)}, which may name code elsewhere: leave it out")
            if key == "solver" and not (isinstance(each, str) and NAME.fullmatch(each) and not each.endswith(".json")):
                raise InputError(f"{where} has solver {shown(each)}, and only solvers of diffode are taken")
            if key == "weight_map" and not all(Path(str(shard)).name == shard for shard in dict(each).values()):
                raise InputError(f"{where} names weights in other folders")
            _check(file, each, key)
    elif isinstance(value, list):
        for each in value:
            _check(file, each, name)
    elif isinstance(value, int) and not file.name.startswith("tokenizer"):  # which says 10³⁰ for no limit
        most = min((bound for word, bound in MOST.items() if word in name), default=HUGE)
        if abs(value) > most:
            raise InputError(f"{where} has {shown(name)} {shown(value)}: expected is at most {most:,}")


def _part(place: Path, kind: Any, dtype: torch.dtype) -> Any:
    """A part of the pipeline, from its folder."""
    import diffusers
    import transformers

    if issubclass(kind, diffusers.SchedulerMixin):
        return kind.from_config(_json(place / "scheduler_config.json"))
    if not issubclass(kind, diffusers.ModelMixin | transformers.PreTrainedModel):
        return kind.from_pretrained(place, local_files_only=True)
    config = _json(place / "config.json")
    with torch.device("meta"):
        if issubclass(kind, diffusers.ModelMixin):
            empty, how = kind.from_config(config), {"torch_dtype": dtype, "low_cpu_mem_usage": None}
        else:
            empty, how = kind(kind.config_class.from_dict(config)), {"dtype": dtype}
    _check_size(place, empty)
    # All numbers are of one dtype here: no part is kept in float32, for which diffusers takes accelerate.
    even = type(kind.__name__, (kind,), {"_keep_in_fp32_modules": None, "__module__": kind.__module__})
    network, loading = even.from_pretrained(  # type: ignore[attr-defined]
        place, local_files_only=True, use_safetensors=True, output_loading_info=True, **how
    )
    network.__class__ = kind
    if lacking := [key for keys in ("missing_keys", "mismatched_keys") for key in loading.get(keys) or ()]:
        raise InputError(f"the weights of {place.name} are not those of its config.json: {shown(lacking[0])} is lacking")
    return network


def _check_size(place: Path, network: nn.Module) -> None:
    """InputError for a configuration of a network that is larger than its files, before memory is taken for it."""
    numbers = sum(weight.numel() for weight in network.parameters())
    size = sum(file.stat().st_size for file in place.iterdir() if file.suffix == WEIGHTS)
    if numbers > size:
        raise InputError(f"{place.name} has {size:,} bytes of weights, and the network of its config.json {numbers:,} weights")
