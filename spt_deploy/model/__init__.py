"""The model in PyTorch: `network` is `backbone` and a head of `heads`, `blocks` has what the backbone is made of.

`operators` is the one seam between it and whatever runs it: four calls, whose meaning is in `reference`.
"""
