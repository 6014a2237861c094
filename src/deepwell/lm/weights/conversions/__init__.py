"""From one shape of network to another, without training.

    exact.py        grouped attention to multi-head latent attention, nothing lost
    compress.py     to a smaller cache: one rotary key that all heads share, and a latent of low rank
      calibration.py  what a text shows of every layer: which inputs, and how the loss depends on scores and values
      rotary.py       key heads mixed so that few pairs carry what position means
      lowrank.py      one latent for many heads, each weighted by what it matters
    split.py        a dense feed-forward layer into experts
      neurons.py      which neurons go together
    refit.py        output matrices fitted again by least squares, behind what was changed
    upcycle.py      copies of a dense feed-forward layer as experts, exact at the start
    measure.py      perplexity and divergence, before and after
    rebuild.py      a network of another shape from the tensors of one

None of them changes the network that it is given. Statistics and factorisations are float32 or float64, whatever the
dtype of the weights.
"""
