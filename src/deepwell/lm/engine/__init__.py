"""Tokens out: paged latent cache, scheduler, sampler, speculation, constrained output."""
