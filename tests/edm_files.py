"""Files as EDM and EDM2 write them, of networks of ours: pickles of objects that bring the source code of their class."""

import pickle
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import asdict, fields
from unittest import mock

from torch import nn

from diffode.networks.edm2_unet import EDM2UNet, EDM2UNetConfig
from diffode.networks.edm_unet import EDMUNet, EDMUNetConfig
from tests.references import formula

TINY = EDMUNetConfig(img_resolution=8, label_dim=3, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
TINY2 = EDM2UNetConfig(8, 4, 3, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), channels_per_head=8)

SMALLEST = EDMUNetConfig(img_resolution=4, model_channels=4, channel_mult=(1,), num_blocks=1, attn_resolutions=())
SMALLEST2 = EDM2UNetConfig(4, 1, 0, model_channels=4, channel_mult=(1,), num_blocks=1, attn_resolutions=())


def _reconstruct_persistent_obj(meta):
    raise AssertionError("nothing of a file is called")


class EasyDict(dict):
    """EDM's dict."""


_reconstruct_persistent_obj.__module__, EasyDict.__module__ = "torch_utils.persistence", "dnnlib.util"


class Object:
    """An object of a class that brings its source code."""

    def __init__(self, name, state, source="raise AssertionError('source code of a file was run')"):
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,), None


@contextmanager
def classes_of_edm():
    """The modules in which a pickler looks for EDM's names."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj, util.EasyDict = _reconstruct_persistent_obj, EasyDict
    modules = {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence}
    with mock.patch.dict(sys.modules, modules | {"dnnlib": types.ModuleType("dnnlib"), "dnnlib.util": util}):
        yield


def object_of(module, name=None, arguments=None):
    """A module as EDM pickles it, and those within it."""
    state = {"training": False, "_parameters": dict(module._parameters), "_buffers": OrderedDict(module._buffers)}
    state["_modules"] = {name: object_of(inner) for name, inner in module.named_children()}
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container.__dict__.update(state)  # whatever it holds
        return container
    state |= {"_init_args": (), "_init_kwargs": EasyDict(arguments or {})}
    return Object(name or type(module).__name__, state)


def precond(inner, name="EDMPrecond", **arguments):
    """A preconditioned network: SongUNet, or the UNet of EDM2 for name="Precond"."""
    place = "unet" if name == "Precond" else "model"
    state = {"_parameters": {}, "_buffers": {}, "_modules": {place: inner}, "_init_kwargs": EasyDict(arguments)}
    return Object(name, state)


def network(config=TINY):
    """A network with the weights of the formula."""
    return formula.fill((EDMUNet if isinstance(config, EDMUNetConfig) else EDM2UNet)(config))


def arguments(config):
    """The arguments that EDM makes such a network with."""
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items() if name != "ve"}
    defaults = {field.name: field.default for field in fields(config)}
    return {name: value for name, value in given.items() if value != defaults[name]} | {
        "img_resolution": config.img_resolution,
        "dropout": 0.1,
    }


def pickled(value, protocol=4):
    """The bytes of a value with EDM's classes."""
    with classes_of_edm():
        return pickle.dumps(value, protocol)


def write(path, config=TINY, name=None, protocol=4, **given):
    """A file of EDM, or of EDM2 by its configuration; given: arguments of the preconditioning."""
    edm = isinstance(config, EDMUNetConfig)
    channels = {"in_channels": config.in_channels, "out_channels": config.out_channels} if edm else {}
    inner = object_of(network(config), "SongUNet" if edm else "UNet", arguments(config) | channels)
    held = {
        "ema": precond(inner, name or ("EDMPrecond" if edm else "Precond"), **given),
        "dataset_kwargs": EasyDict(path="data.zip"),
    }
    path.write_bytes(pickled(held, protocol))
    return path
