"""Tiny pipelines of diffusers, of every family, made from configuration with random weights that a seed decides.

`build(name)` makes one, once per process, and `call(name)` has the arguments for four steps of it: a prompt for those with a
tokenizer (sd, sd-controlnet, sd-inpaint), embeddings for the others. Nothing is downloaded. A test that changes a pipeline
takes a `fresh(name)` one, which shares the modules of `build(name)` and has a scheduler of its own.
"""

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import Tensor

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
UNET = {
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "norm_num_groups": 2,
}
PLAIN_UNET = {
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "norm_num_groups": 2,
}
STEPS = {"num_inference_steps": 4, "output_type": "np"}
PICTURE = {"height": 16, "width": 16}
WORDS = ("a", "red", "bicycle", "blue", "boat", "on", "the", "sea")


@contextmanager
def seeded(seed: int = 0):
    """Weights drawn here are the same in every process, and the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vae(channels: int = 4, **config):
    """An autoencoder that halves the sides of a picture."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=16,
        **config,
    )


def tokenizer():
    """CLIP's, for a few words and for letters."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:  # the first two, then the next: a word is one token
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
            tokens.append(parts[0])
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=12, pad_token="<|endoftext|>")


def text_encoder(tokens):
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    ends = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id}
    return CLIPTextModel(CLIPTextConfig(vocab_size=len(tokens), max_position_embeddings=12, **sizes, **ends))


def _sd_parts(**unet):
    from diffusers import DDIMScheduler, UNet2DConditionModel

    tokens = tokenizer()
    return {
        "vae": vae(),
        "text_encoder": text_encoder(tokens),
        "tokenizer": tokens,
        "unet": UNet2DConditionModel(**(UNET | unet)),
        "scheduler": DDIMScheduler(**SD, set_alpha_to_one=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _sd():
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(**_sd_parts())


def _sd_controlnet():
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    names = "block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim", "attention_head_dim"
    shared = {name: UNET[name] for name in (*names, "norm_num_groups")}
    controlnet = ControlNetModel(**shared, conditioning_embedding_out_channels=(4, 4))  # which halves the sides, as `vae` does
    return StableDiffusionControlNetPipeline(**_sd_parts(), controlnet=controlnet)


def _sd_inpaint():
    from diffusers import StableDiffusionInpaintPipeline

    return StableDiffusionInpaintPipeline(**_sd_parts(in_channels=9))


def _sdxl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 2, "projection_class_embeddings_input_dim": 20}
    table = {name: SD[name] for name in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=UNet2DConditionModel(**UNET, **added),
        scheduler=EulerDiscreteScheduler(**table, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _sd3():
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    heads = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    text = {"joint_attention_dim": 8, "pooled_projection_dim": 8}
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(sample_size=8, in_channels=4, out_channels=4, pos_embed_max_size=8, **heads, **text),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        **dict.fromkeys(f"{kind}{which}" for kind in ("text_encoder", "tokenizer") for which in ("", "_2", "_3")),
    )


def _flux():
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    heads = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    text = {"joint_attention_dim": 8, "pooled_projection_dim": 8}
    return FluxPipeline(
        transformer=FluxTransformer2DModel(in_channels=16, guidance_embeds=True, axes_dims_rope=(4, 2, 2), **heads, **text),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
    )


def _pixart():
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    heads = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4}
    return PixArtAlphaPipeline(
        transformer=PixArtTransformer2DModel(sample_size=8, cross_attention_dim=8, caption_channels=8, **heads),
        scheduler=DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02),
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
    )


def _dit():
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    heads = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4, "norm_num_groups": 2}
    return DiTPipeline(
        transformer=DiTTransformer2DModel(sample_size=8, out_channels=8, **heads),
        vae=vae(),
        scheduler=DDIMScheduler(clip_sample=False),
    )


def _wan():
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    heads = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12}
    sizes = {"text_dim": 8, "freq_dim": 8, "ffn_dim": 16, "rope_max_seq_len": 32}
    return WanPipeline(
        transformer=WanTransformer3DModel(**heads, **sizes),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        vae=AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        text_encoder=None,
        tokenizer=None,
    )


def _ltx():
    from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    heads = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 8}
    return LTXPipeline(
        transformer=LTXVideoTransformer3DModel(in_channels=8, out_channels=8, **heads),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1),
        vae=AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5,
        ),
        text_encoder=None,
        tokenizer=None,
    )


def _ddpm():
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    return DDPMPipeline(unet=UNet2DModel(**PLAIN_UNET), scheduler=DDPMScheduler())


def _ddim():
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    return DDIMPipeline(unet=UNet2DModel(**PLAIN_UNET), scheduler=DDIMScheduler(clip_sample=False))


FAMILIES = {
    "sd": _sd,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "pixart": _pixart,
    "dit": _dit,
    "wan": _wan,
    "ltx": _ltx,
    "ddpm": _ddpm,
    "ddim": _ddim,
    "sd-controlnet": _sd_controlnet,
    "sd-inpaint": _sd_inpaint,
}


@cache
def build(name: str):
    """The pipeline of that name. Weights that begin at zero, as those of a ControlNet, are drawn too."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    with seeded():
        pipeline = FAMILIES[name]()
        for module in pipeline.components.values():
            for weight in module.eval().parameters() if isinstance(module, torch.nn.Module) else ():
                if not weight.any() and weight.ndim > 1:
                    torch.nn.init.normal_(weight, std=0.1)
                weight.requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fresh(name: str):
    """Another pipeline of the modules of `build(name)`, with a scheduler of its own."""
    pipeline = build(name)
    parts = {**pipeline.components, "scheduler": type(pipeline.scheduler).from_config(pipeline.scheduler.config)}
    made = type(pipeline)(**parts, **({"requires_safety_checker": False} if "safety_checker" in parts else {}))
    made.set_progress_bar_config(disable=True)
    return made


def call(name: str) -> dict:
    """Arguments of four steps of `build(name)`, but for latents and generators; made anew at each call."""
    prompt = {"prompt": "a red bicycle", "guidance_scale": 5.0, **PICTURE, **STEPS}
    embedded = {"prompt_embeds": normal(1, 6, 8), "negative_prompt_embeds": normal(1, 6, 8, seed=1)}
    pooled = {"pooled_prompt_embeds": normal(1, 8, seed=2), "negative_pooled_prompt_embeds": normal(1, 8, seed=3)}
    masks = {f"{which}prompt_attention_mask": torch.ones(1, 6, dtype=torch.int64) for which in ("", "negative_")}
    video = {"num_frames": 5, **PICTURE, **STEPS}
    return {
        "sd": lambda: prompt,
        "sdxl": lambda: {**embedded, **pooled, "guidance_scale": 5.0, **PICTURE, **STEPS},
        "sd3": lambda: {**embedded, **pooled, "guidance_scale": 5.0, **PICTURE, **STEPS},
        "flux": lambda: {
            "prompt_embeds": normal(1, 6, 8),
            "pooled_prompt_embeds": normal(1, 8, seed=2),
            "guidance_scale": 3.5,
            **PICTURE,
            **STEPS,
        },
        "pixart": lambda: {
            "negative_prompt": None,
            **embedded,
            **masks,
            "guidance_scale": 4.5,
            "use_resolution_binning": False,
            **PICTURE,
            **STEPS,
        },
        "dit": lambda: {"class_labels": [207], "guidance_scale": 4.0, **STEPS},
        "wan": lambda: {**embedded, "guidance_scale": 5.0, **video},
        "ltx": lambda: {**embedded, **masks, "guidance_scale": 3.0, **video, "height": 32, "width": 32, "num_frames": 9},
        "ddpm": lambda: STEPS,
        "ddim": lambda: STEPS,
        "sd-controlnet": lambda: {**prompt, "image": normal(1, 3, 16, 16, seed=4).sigmoid()},
        "sd-inpaint": lambda: {
            **prompt,
            "image": normal(1, 3, 16, 16, seed=4).sigmoid(),
            "mask_image": (torch.arange(16) < 8).float().expand(1, 1, 16, 16).clone(),
        },
    }[name]()
