"""Small and published shapes of ADM and DiT: what make_adm.py, make_dit.py and the tests share."""

import torch

from tests.references import formula

PACKAGES = {"guided-diffusion": "guided_diffusion", "improved-diffusion": "improved_diffusion", "consistency_models": "cm"}
TINY_ADM = {  # as ADM at 64 × 64, 128 × 128 and 512 × 512, and as the bedrooms of the two others
    "64": {"image": (3, 16, 16), "width": 32, "widths": (32, 64), "blocks": 1, "attention": (8,), "classes": 7, "qkv_first": True}
    | {"head_channels": 32},
    "128": {"image": (3, 16, 16), "width": 32, "widths": (32, 64, 96), "blocks": 1, "attention": (8, 4), "classes": 7}
    | {"head_channels": 0, "heads": 4},
    "512": {"image": (3, 8, 16), "width": 64, "widths": (32, 64), "blocks": 2, "attention": (4,), "head_channels": 32},
    "lsun_uncond": {"image": (3, 16, 16), "width": 32, "widths": (32, 32, 64), "blocks": 2, "attention": (8,), "heads": 2}
    | {"head_channels": 0, "scale_shift": False, "resample_blocks": False, "learned_variance": False},
    "edm_bedroom": {"image": (3, 16, 16), "width": 32, "widths": (32, 64), "blocks": 1, "attention": (8,), "head_channels": 32}
    | {"qkv_first": True, "scale_shift": False, "learned_variance": False},
}
TINY_CLASSIFIER = {"image": (3, 16, 16), "width": 32, "widths": (32, 64), "blocks": 1, "attention": (8,), "classes": 7}
TINY_CLASSIFIER |= {"head_channels": 32}
TINY_DIT = {
    "patch 2": {"image": (4, 8, 8), "patch": 2, "width": 24, "depth": 2, "heads": 3, "classes": 5},
    "patch 4": {"image": (4, 8, 8), "patch": 4, "width": 16, "depth": 1, "heads": 1, "classes": 5, "learned_variance": False},
}


def repository(name):
    """Where a network of this name was published."""
    kinds = {"uncond_": "improved-diffusion", "lsun_uncond": "improved-diffusion", "64_cond": "improved-diffusion"}
    kinds |= {"edm_": "consistency_models"}
    return next((place for part, place in kinds.items() if part in name), "guided-diffusion")


def widths(width, *multiples):
    return tuple(int(width * multiple) for multiple in multiples)


ADM_64 = {"image": (3, 64, 64), "width": 192, "widths": widths(192, 1, 2, 3, 4), "blocks": 3, "classes": 1000, "qkv_first": True}
ADM_128 = {"image": (3, 128, 128), "width": 256, "widths": widths(256, 1, 1, 2, 3, 4), "blocks": 2, "classes": 1000}
ADM_128 |= {"head_channels": 0, "heads": 4}
ADM_256 = {"image": (3, 256, 256), "width": 256, "widths": widths(256, 1, 1, 2, 2, 4, 4), "blocks": 2}
ADM_512 = {"image": (3, 512, 512), "width": 256, "widths": widths(256, 0.5, 1, 1, 2, 2, 4, 4), "blocks": 2, "classes": 1000}
IDDPM = {"width": 128, "blocks": 3, "attention": (16, 8), "head_channels": 0, "heads": 4, "resample_blocks": False}
IDDPM_64 = IDDPM | {"image": (3, 64, 64), "widths": widths(128, 1, 2, 3, 4), "clock_scale": 0.25}
IDDPM_BEDROOM = {"image": (3, 256, 256), "widths": widths(128, 1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (16,), "heads": 1}
TINY_EDM = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 5, "augment_dim": 9, "model_channels": 128}
TINY_EDM |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
PUBLISHED_ADM = {  # the flags in the READMEs of openai/guided-diffusion and openai/improved-diffusion
    "64x64_diffusion.pt": ADM_64,
    "128x128_diffusion.pt": ADM_128,
    "256x256_diffusion.pt": ADM_256 | {"classes": 1000},
    "256x256_diffusion_uncond.pt": ADM_256,
    "lsun_bedroom.pt": ADM_256,
    "512x512_diffusion.pt": ADM_512,
    "cifar10_uncond_50M_500K.pt": IDDPM | {"image": (3, 32, 32), "widths": widths(128, 1, 2, 2, 2), "clock_scale": 0.25},
    "imagenet64_uncond_100M_1500K.pt": IDDPM_64,
    "imagenet64_cond_270M_250K.pt": IDDPM_64
    | {"width": 192, "widths": widths(192, 1, 2, 3, 4), "classes": 1000, "clock_scale": 1.0},
    "lsun_uncond_100M_1200K_bs128.pt": IDDPM | IDDPM_BEDROOM | {"scale_shift": False},
}
# Of these the shapes do not say the order of queries, keys and values, nor the clock: the format openai-edm does.
PUBLISHED_ADM["edm_imagenet64_ema.pt"] = ADM_64 | {"learned_variance": False, "clock_scale": 1000.0}
PUBLISHED_ADM["edm_bedroom256_ema.pt"] = ADM_256 | {"learned_variance": False, "scale_shift": False, "clock_scale": 1000.0}
CLASSIFIER = {"width": 128, "blocks": 2, "classes": 1000}
PUBLISHED_CLASSIFIERS = {
    "64x64_classifier.pt": CLASSIFIER | {"image": (3, 64, 64), "widths": widths(128, 1, 2, 3, 4), "blocks": 4},
    "128x128_classifier.pt": CLASSIFIER | {"image": (3, 128, 128), "widths": widths(128, 1, 1, 2, 3, 4)},
    "256x256_classifier.pt": CLASSIFIER | {"image": (3, 256, 256), "widths": widths(128, 1, 1, 2, 2, 4, 4)},
    "512x512_classifier.pt": CLASSIFIER | {"image": (3, 512, 512), "widths": widths(128, 0.5, 1, 1, 2, 2, 4, 4)},
}
SIZES_OF_DIT = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
PUBLISHED_DIT = {
    f"{name}/{patch}": {"patch": patch, "width": width, "depth": depth, "heads": heads}
    for name, (width, depth, heads) in SIZES_OF_DIT.items()
    for patch in (2, 4, 8)
}
PUBLISHED_DIT["XL/2 at 512"] = PUBLISHED_DIT["XL/2"] | {"image": (4, 64, 64)}


def inputs(image, classes):
    """x, t and y for three samples; y is None without labels."""
    y = torch.tensor([0, classes - 1, 1]) if classes else None
    return formula.waves((3, *image), 1), torch.tensor([0.0, 17.5, 999.0], dtype=torch.float64), y
