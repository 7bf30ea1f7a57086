"""What a server needs around a session: requests by name, limits, metrics, and configuration for NVIDIA Triton.

`service` answers requests, `metrics` counts them for Prometheus, `asgi` limits the size of HTTP requests, and `triton`
writes a model repository.
"""
