"""How a denoiser is judged: distances between samples and real images, copies, likelihood, and what a setting costs.

`features` turns images into numbers, `distances` compares them, `reference` keeps those of the real set,
`classifier` says which class a sample shows, `neighbours` looks for copies of training images, `likelihood` gives
bits per dimension, `sweep` tries settings of the sampler. `denoiser` does all of it for `unetdiff evaluate`, knowing a
denoiser only as a few functions (`subject`); `judges` are those who look at its samples. Import from the modules.
"""
