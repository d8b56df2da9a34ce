"""The card of a model: what is needed to use its numbers, and where they come from.

On disk a card is one flat JSON object, in the header of a safetensors file (checkpoint.py) and in a .json file beside it:

    kind        "unet", "mixture", "ddpm-unet", "diffusers", "module" or "classifier": which code makes the network
    config      the arguments of that code, absent where it takes none (a mixture, a user's module)
    image       the shape of one sample, of images [channels, height, width]
    classes     the names of the labels, [] without
    schedule    {"name": ..., "options": {...}}, as diffode.schedules.make takes them
    predicts    as in prediction.PREDICTIONS
    clock       the network's second argument, a name of clocks.CLOCKS

and, where they are not EpsModel's defaults, label, null_label, one_hot and learned_variance: how the network takes labels, and
whether half of its channels are variances.

A classifier has none of these but its classes. All other keys are provenance: data, images seen, losses, command, date.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from diffode import clocks
from diffode.errors import InputError, shown
from diffode.files import as_json
from diffode.labels import MOST_CLASSES
from diffode.model import EpsModel
from diffode.reading import MOST_NUMBERS
from diffode.schedule import Schedule
from diffode.schedules import MOST_LABELS, make

DIFFUSION = ("schedule", "predicts", "clock")  # the fields of a diffusion model, which a classifier lacks
DEFAULTS = {"label": "y", "null_label": None, "one_hot": False, "learned_variance": False}  # EpsModel's; what is so has no key


@dataclass(frozen=True)
class Card:
    """See the module docstring. `schedule` and `schedule_options` are the JSON's schedule.name and schedule.options."""

    kind: str
    image: tuple[int, ...]
    classes: tuple[str, ...] = ()
    schedule: str | None = None
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    predicts: str | None = None
    clock: str | None = None
    config: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    changed: Mapping[str, Any] = field(default_factory=dict)  # of DEFAULTS, what is otherwise

    def __post_init__(self) -> None:
        assert not FIELDS.keys() & self.provenance.keys(), "provenance must not hide a field"
        for name in ("config", "schedule_options", "provenance"):  # tuples become lists, so that a card read back equals itself
            object.__setattr__(self, name, as_json(getattr(self, name)))

    @classmethod
    def of(
        cls,
        model: EpsModel,
        kind: str,
        classes: Sequence[str] | None = None,
        config: Mapping[str, Any] | None = None,
        **provenance: Any,
    ) -> Card:
        """The card of a model whose `shape` is known; its labels are called by their numbers unless `classes` names them."""
        if model.shape is None:
            raise InputError("a card says the shape of one sample: give the EpsModel its shape=(channels, height, width)")
        names = tuple(map(str, range(model.classes))) if classes is None else tuple(classes)
        schedule = model.schedule
        options = dict(schedule.options)
        clock = clocks.name_of(model.clock)
        changed = {name: getattr(model, name) for name, default in DEFAULTS.items() if getattr(model, name) != default}
        return cls(kind, tuple(model.shape), names, schedule.name, options, model.predicts, clock, config, provenance, changed)

    def network_config(self) -> dict[str, Any]:
        """`config`, the arguments of the network's code; InputError for a card without."""
        if self.config is None:
            raise InputError(f"its card lacks 'config', which says how large a {self.kind} it is")
        return dict(self.config)

    def make_schedule(self) -> Schedule:
        """The schedule by its name and options; InputError for a card without one, and for an unknown name or option."""
        if self.schedule is None:
            raise InputError(f"a {self.kind} has no noise schedule: it is no diffusion model")
        return make(self.schedule, **self.schedule_options)

    def model(self, network: Callable[..., Tensor], schedule: Schedule | None = None) -> EpsModel:
        """The network as the EpsModel that this card describes; schedule: if it is not one that `make_schedule` can make."""
        schedule = schedule or self.make_schedule()
        if self.predicts is None or self.clock is None:
            raise InputError(f"a {self.kind} says neither what it predicts nor its clock: it is no diffusion model")
        labels = {"classes": len(self.classes), **self.changed}
        return EpsModel(network, schedule, self.predicts, clock=self.clock, shape=self.image, **labels)

    def to_json(self) -> dict[str, Any]:
        """The flat JSON object, in the order of the module docstring; what is absent has no key."""
        schedule = None if self.schedule is None else {"name": self.schedule, "options": dict(self.schedule_options)}
        fields = {
            "kind": self.kind,
            "config": self.config,
            "image": list(self.image),
            "classes": list(self.classes),
            "schedule": schedule,
            "predicts": self.predicts,
            "clock": self.clock,
            **self.changed,
        }
        return {**{name: value for name, value in fields.items() if value is not None}, **self.provenance}

    @classmethod
    def from_json(cls, value: Any, source: str | Path) -> Card:
        """The card of a JSON object; InputError, which names `source` and the field, for a field that is missing or wrong.

        A card has all three of schedule, predicts and clock, or none of them.
        """
        if not isinstance(value, dict):
            raise InputError(f"{source}: a card is a JSON object, not {shown(value)}")
        optional = {"config", *DEFAULTS} | (set() if any(name in value for name in DIFFUSION) else set(DIFFUSION))
        for name, (expected, fits) in FIELDS.items():
            if name not in value and name not in optional:
                raise InputError(f"{source}: its card lacks {name!r}, {expected}: it is incomplete, or of another version")
            if name in value and not fits(value[name]):
                raise InputError(f"{source}: {name!r} of its card is {shown(value[name])}, where {expected} is expected")
        schedule = value.get("schedule", {"name": None, "options": {}})
        return cls(
            value["kind"],
            tuple(value["image"]),
            tuple(value["classes"]),
            schedule["name"],
            schedule["options"],
            value.get("predicts"),
            value.get("clock"),
            value.get("config"),
            {name: item for name, item in value.items() if name not in FIELDS},
            {name: value[name] for name in DEFAULTS if name in value},
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_shape(value: Any) -> bool:
    sizes = isinstance(value, list) and bool(value) and all(type(size) is int and size > 0 for size in value)
    return sizes and math.prod(value[:8]) <= MOST_NUMBERS and len(value) <= 8


def _is_schedule(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"name", "options"}:
        return False
    name, options = value["name"], value["options"]
    return _is_text(name) and isinstance(options, dict) and all(map(_is_option, options.values()))


def _is_option(value: Any) -> bool:
    """What a schedule is made with: a number, as that of its labels, a table of numbers, True or False, or a name."""
    if isinstance(value, list):
        return len(value) <= MOST_LABELS and all(type(each) in (int, float) and math.isfinite(each) for each in value)
    if type(value) in (bool, str):
        return True
    return type(value) in (int, float) and math.isfinite(value) and (type(value) is float or 0 <= value <= MOST_LABELS)


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # what is expected, and the check
    "kind": ("a text", _is_text),
    "config": ("an object", lambda value: isinstance(value, dict)),
    "image": (f"a list of positive whole numbers, of a product of at most {MOST_NUMBERS:,},", _is_shape),
    "classes": ("a list of texts", lambda value: isinstance(value, list) and all(map(_is_text, value))),
    "schedule": (
        'an object {"name": ..., "options": {...}}, the options being numbers, lists of them or names,',
        _is_schedule,
    ),
    "predicts": ("a text", _is_text),
    "clock": ("a text", _is_text),
    "label": ("a keyword of the network", lambda value: _is_text(value) and value.isidentifier()),
    "null_label": (
        f"a whole number of at most {MOST_CLASSES:,}",
        lambda value: type(value) is int and 0 <= value <= MOST_CLASSES,
    ),
    "one_hot": ("true or false", lambda value: type(value) is bool),
    "learned_variance": ("true or false", lambda value: type(value) is bool),
}
