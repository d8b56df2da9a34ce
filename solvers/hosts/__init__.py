"""Programs that call the network themselves, driven by a Plan: pipelines of diffusers, k-diffusion, ComfyUI."""
