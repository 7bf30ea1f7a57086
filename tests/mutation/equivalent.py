"""Mutants that no test can notice, because they compute the same, by the reason why."""

REASONS = {
    "NumPy makes the result float64 where one of both is.": [
        "runtime/parity/golden.py: save_golden: y.astype(np.float64) -> y",
        "runtime/parity/reference.py: Reference.replace_recons: self.error_target.astype(np.float64) -> "
        "self.error_target",
    ],
    "A tensor that is missing has no size, and an error names it.": [
        "runtime/parity/golden.py: _check_tensors: 1 -> 0 (place 2)",
    ],
    "A feature whose preactivation was moved to 0 is off.": [
        "runtime/parity/decisions.py: _explain_support: 1.0 -> 2.0",
    ],
    "It would be computed again, to the same values.": [
        "runtime/parity/reference.py: Reference.with_truth: changed.__dict__['_sizes_of_features'] = "
        "self._sizes_of_features -> pass",
    ],
    "A reference has at least one token and one feature.": [
        "runtime/parity/reference.py: Reference.errors: _rms(elements).max(initial=0.0) -> _rms(elements).max()",
        "runtime/parity/reference.py: Reference.errors: elements.max(initial=0.0) -> elements.max()",
        "runtime/parity/proof.py: _max_l0: (reference.original[HOOK_ACTS_POST] != 0).sum(axis=1).max(initial=0) -> "
        "(reference.original[HOOK_ACTS_POST] != 0).sum(axis=1).max()",
    ],
    "A hook without an error has none that is above its limit, which is more than 0 in any case.": [
        "saeexport/proof/truth.py: _implausible: 0.0 -> 1.0",
    ],
    "What has a size of 0 is 0 itself, so that 0 is divided by 0 and nothing else.": [
        "runtime/parity/reference.py: Reference.column_budgets: np.errstate(divide='ignore', invalid='ignore') -> "
        "np.errstate(invalid='ignore')",
    ],
    "It is the default of NumPy's function, here with two dimensions.": [
        "runtime/parity/proof.py: _are_first: np.take_along_axis(dense, np.clip(indices, 0, dense.shape[1] - 1), "
        "axis=1) -> np.take_along_axis(dense, np.clip(indices, 0, dense.shape[1] - 1))",
        "runtime/parity/proof.py: _are_distinct: np.sort(np.where(values != 0, outputs[INDICES], "
        "-1 - np.arange(values.shape[1])), axis=1) -> np.sort(np.where(values != 0, outputs[INDICES], "
        "-1 - np.arange(values.shape[1])))",
    ],
    "In which order a graph is run with several `k` does not matter.": [
        "runtime/parity/proof.py: _probe_ks: sorted({1, half, min(half, d_sae // FEATURES_PER_K)} - {0}) -> "
        "{1, half, min(half, d_sae // FEATURES_PER_K)} - {0}",
    ],
    "A place without a feature is behind one with a feature, so that the numbers stay distinct.": [
        "runtime/parity/proof.py: _are_distinct: 1 -> 0",
    ],
    "An empty call is left out, and the last one has one token in any case.": [
        "runtime/parity/running.py: run_in_calls: tokens - 1 -> tokens",
        "runtime/parity/running.py: run_in_calls: 1 -> 0 (place 2)",
    ],
    "Without large batches the step is negative, and the range is empty.": [
        "runtime/parity/running.py: run_in_calls: range(half, tokens - 1, small) if for_cpu or large else [] -> "
        "range(half, tokens - 1, small)",
    ],
}

EQUIVALENT = {name: reason for reason, names in REASONS.items() for name in names}
