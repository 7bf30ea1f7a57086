"""Language models with SAEs grafted into their graphs: the folder on disk, sessions, text, generation and proof.

It runs without PyTorch and onnx. Text needs the package `tokenizers`.
"""
