"""The tables, figures and theorem of *Denoising Diffusion Implicit Models* (Song et al., 2021a), computed again."""
