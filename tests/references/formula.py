"""Weights and inputs by formula, so that a reference implementation and ours are compared on the same numbers without a file."""

import hashlib

import torch


def waves(shape, seed):
    """Numbers between −1.4 and 1.4 in float64 without any pattern of the layout: the sum of two sines."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (torch.sin(i * (1.7 + 0.11 * seed) + seed) + 0.4 * torch.sin(i**2 * 0.37 + 2 * seed)).view(shape)


def weights(shapes):
    """name -> values in float64, by the place among the sorted names, in the size that a weight's fan needs; norms near 1."""
    found = {}
    for seed, (name, shape) in enumerate(sorted(shapes.items())):
        values = waves(shape, seed % 40)
        if len(shape) > 1:
            found[name] = 1.4 * values / torch.Size(shape[1:]).numel() ** 0.5
        elif "norm" in name.lower() and name.endswith("weight"):
            found[name] = 1 + 0.2 * values
        else:
            found[name] = 0.3 * values
    return found


def fill(network):
    """Every weight and random buffer of a network by `weights`, but filters and noise levels."""
    state = network.state_dict()
    for name, values in weights(shapes(network)).items():
        if not name.endswith(("resample_filter", "sigmas")):
            state[name].copy_(values)
    return network.eval().requires_grad_(False)


def shapes(network, prefix=""):
    """name -> shape of the state dict, of the names that begin with `prefix`, which is left out."""
    state = network.state_dict().items()
    return {name.removeprefix(prefix): list(tensor.shape) for name, tensor in state if name.startswith(prefix)}


def digest(named):
    """A short digest of names and shapes."""
    return hashlib.sha256(repr(sorted((name, list(shape)) for name, shape in named.items())).encode()).hexdigest()[:16]


def sampled(output):
    """Some of the numbers of an output, with its mean square, at full precision."""
    flat = output.flatten().double()
    return [*flat[:: max(1, len(flat) // 40)].tolist(), float((flat**2).mean())]
