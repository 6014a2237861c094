"""What a GPU does differently: one attention kernel for all that decode, steps as graphs, products with FP8 weights."""
