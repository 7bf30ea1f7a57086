"""`python -m runtime report`: an artifact as one HTML file that needs no network, to look at and to pass on.

`command` runs the artifact, `measure` has what is measured on the golden batch, `page` says what stands where,
`diagram` and `charts` draw, and `markup` makes elements of HTML and SVG.
"""
