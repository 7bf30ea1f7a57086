"""Grafts SAEs into the ONNX model of their language model, the host.

An SAE is grafted at a hook, that is at a value of the host's graph. The values are proposed by names (`names`), found
and confirmed by numbers (`locate`, `reference`), and the SAE's nodes are inserted there (`insert`). `cut` makes the
stages of a host, `write` puts weights and graphs into a folder, and `prove` runs it before it appears.
"""
