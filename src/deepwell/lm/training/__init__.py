"""Learning: recipes, data, precision, the loop and what one sees of it. Pretraining and fine-tuning the V3 way."""
