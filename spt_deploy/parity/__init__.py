"""Parity: do artefacts and runtimes say the same on the same inputs, and if not, why?

`inputs` makes the inputs, `probe` runs an artefact with its selection in view, `compare` holds arrays against each
other, `selection` tells a flipped borderline token from a wrong kernel, `checks` puts a report together.
"""
