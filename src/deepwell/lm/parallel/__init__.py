"""Many processes as one: device mesh, sharded weights, experts that live apart, all-to-all for their tokens."""
