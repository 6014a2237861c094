"""Training recipes that come with Deepwell, one TOML file each; ``deepwell.lm.training.reading`` finds them."""
