"""The standard SAE in float64 NumPy, with a bound on the error that float32 may have at each step.

It is written independently of the code that it is compared with. ReLU does not enlarge an error, so that no decision
about a feature needs an exception.

Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1: a sum of n products in any
order has an error of at most n u / (1 - n u) times the sum of their absolute values, with u = 2^-24 for float32.
"""

from dataclasses import dataclass

import numpy as np

U = 2.0**-24
SLACK = 4
"""Roundings that are allowed in addition to those of a product: of the input's bias, of the bias, of an edit."""


@dataclass(frozen=True)
class Bounded:
    """Exact values, and how far those of float32 may be from them."""

    value: np.ndarray
    error: np.ndarray

    @classmethod
    def exact(cls, value):
        value = np.asarray(value, np.float64)
        return cls(value, np.zeros_like(value))

    def product(self, weights, bias):
        """Return `self @ weights + bias`."""
        weights, bias = np.asarray(weights, np.float64), np.asarray(bias, np.float64)
        size = (np.abs(self.value) + self.error) @ np.abs(weights) + np.abs(bias)
        return Bounded(self.value @ weights + bias, self.error @ np.abs(weights) + (len(weights) + SLACK) * U * size)

    def relu(self):
        return Bounded(np.maximum(self.value, 0), self.error)

    def scaled(self, scale, shift):
        """Return `self * scale + shift`."""
        size = (np.abs(self.value) + self.error) * np.abs(scale)
        return Bounded(
            self.value * scale + shift, self.error * np.abs(scale) + U * (2 * size + np.abs(shift) + 2.0**-125)
        )

    def plus(self, other, sign=1):
        value = self.value + sign * other.value
        error = self.error + other.error
        return Bounded(value, error + U * (np.abs(value) + error))

    def check(self, found, what):
        """Fail unless values that were computed in float32 are within the bound."""
        assert found.shape == self.value.shape, what
        wrong = ~(np.abs(np.asarray(found, np.float64) - self.value) <= self.error)
        assert not wrong.any(), f"{what}: {found[wrong][:3]}, not {self.value[wrong][:3]} +- {self.error[wrong][:3]}"


def encode(weights, x):
    """Return acts_pre and acts_post of `x`, `(tokens, d_in)`, without error."""
    # x - b_dec may be multiplied out, as the graphs for a CPU do: then b_dec @ W_enc is a sum of its own.
    shifted = Bounded.exact(x).plus(Bounded.exact(np.broadcast_to(weights["b_dec"], x.shape)), -1)
    size = np.abs(x) + np.abs(weights["b_dec"])
    acts_pre = Bounded(shifted.value, shifted.error + SLACK * U * size).product(weights["W_enc"], weights["b_enc"])
    return acts_pre, acts_pre.relu()
