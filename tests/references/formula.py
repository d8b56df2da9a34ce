"""Weights and inputs by formula, so that a reference implementation and ours are compared on the same numbers without a file."""

import hashlib

import torch


def waves(shape, seed):
    """Numbers between −1.4 and 1.4 in float64 without any pattern of the layout: the sum of two sines."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (torch.sin(i * (1.7 + 0.11 * seed) + seed) + 0.4 * torch.sin(i**2 * 0.37 + 2 * seed)).view(shape)


def fill(network):
    """Every weight and random buffer by its place among the sorted names, in the size that its fan needs; norms near 1."""
    state = network.state_dict()
    for seed, name in enumerate(sorted(state)):
        if name.endswith("resample_filter"):
            continue
        weight = state[name]
        values = waves(weight.shape, seed % 40)
        if weight.ndim > 1:
            values = 1.4 * values / weight[0].numel() ** 0.5
        elif "norm" in name.lower() and name.endswith("weight"):
            values = 1 + 0.2 * values
        else:
            values = 0.3 * values
        weight.copy_(values)
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
