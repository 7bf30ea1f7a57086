"""Mutants that no test can notice, because they compute the same, by the reason why."""

REASONS = {
    "A value that is not 0 keeps the feature on, however small it is.": [
        "runtime/parity/decisions.py: MIN_SHRINK: 2.0 -> 4.0",
        "runtime/parity/decisions.py: MIN_SHRINK: 24 -> 48",
    ],
    "A negative preactivation moves both ways in any case, first the one and then the other.": [
        "runtime/parity/decisions.py: _explain_support: np.abs(pre) -> pre",
    ],
    "NumPy makes the result float64 where one of both is.": [
        "runtime/parity/golden.py: save_golden: y.astype(np.float64) -> y",
        "runtime/parity/decisions.py: _explain_support: activate(np.ones(len(on), bool), pre).astype(np.float64) -> "
        "activate(np.ones(len(on), bool), pre)",
        "runtime/parity/decisions.py: _explain_support: activate(contested, moved).astype(np.float64) -> "
        "activate(contested, moved)",
        "runtime/parity/reference.py: Reference.replace_recons: self.error_target.astype(np.float64) -> "
        "self.error_target",
        "runtime/parity/reference.py: Reference._error_arrays: _rows(y).astype(np.float64) -> _rows(y)",
    ],
    "A token that needs no explanation has one; it is only computed once more.": [
        "runtime/parity/decisions.py: _explain_support: ((decided != 0) != on) & must_explain -> (decided != 0) != on",
        "runtime/parity/decisions.py: _explain_support: contested[places] = False -> pass",
        "runtime/parity/decisions.py: _explain_support: False -> True",
    ],
    "A tensor that is missing has no size, and an error names it.": [
        "runtime/parity/golden.py: _check_tensors: 1 -> 0 (place 2)",
    ],
    "A feature whose preactivation was moved to 0 is off.": [
        "runtime/parity/decisions.py: _explain_support: 1.0 -> 2.0",
    ],
    "A reference has at least one token and one feature.": [
        "runtime/parity/reference.py: Reference.errors: token.max(initial=0.0) -> token.max()",
        "runtime/parity/reference.py: Reference.errors: element.max(initial=0.0) -> element.max()",
        "runtime/parity/proof.py: _max_l0: (reference.original[HOOK_ACTS_POST] != 0).sum(axis=1).max(initial=0) -> "
        "(reference.original[HOOK_ACTS_POST] != 0).sum(axis=1).max()",
    ],
    "What has a size of 0 is 0 itself, so that 0 is divided by 0 and nothing else.": [
        "runtime/parity/reference.py: Reference.column_budgets: np.errstate(divide='ignore', invalid='ignore') -> "
        "np.errstate(invalid='ignore')",
    ],
    "It is the default of NumPy's function, here with two dimensions.": [
        "runtime/parity/reference.py: Reference._error_arrays: np.nan_to_num(difference / self.scale(hook), nan=0.0, "
        "posinf=np.inf) -> np.nan_to_num(difference / self.scale(hook), posinf=np.inf)",
        "runtime/parity/proof.py: _judge_features: np.take_along_axis(dense[HOOK_ACTS_POST], np.clip(fewer[INDICES], "
        "0, d_sae - 1), axis=1) -> np.take_along_axis(dense[HOOK_ACTS_POST], np.clip(fewer[INDICES], 0, d_sae - 1))",
        "runtime/parity/proof.py: _judge_features: np.sort(np.where(top.values != 0, top.indices, -1 - np.arange(k)), "
        "axis=1) -> np.sort(np.where(top.values != 0, top.indices, -1 - np.arange(k)))",
    ],
    "There is one column, because `PROBE_K` is 1.": [
        "runtime/parity/proof.py: _judge_features: ((fewer[VALUES] == outputs[VALUES][:, :PROBE_K]) & "
        "((fewer[VALUES] == named) | is_off)).all(axis=1) -> ((fewer[VALUES] == outputs[VALUES][:, :PROBE_K]) & "
        "((fewer[VALUES] == named) | is_off)).any(axis=1)",
        "runtime/parity/proof.py: _judge_features: ((fewer[INDICES] == -1) == is_off).all(axis=1) -> "
        "((fewer[INDICES] == -1) == is_off).any(axis=1)",
    ],
    "Where the first value is 0, all are, also that of feature 0.": [
        "runtime/parity/proof.py: _judge_features: (fewer[VALUES] == named) | is_off -> fewer[VALUES] == named",
    ],
    "A place without a feature is behind one with a feature, so that the numbers stay distinct.": [
        "runtime/parity/proof.py: _judge_features: 1 -> 0 (place 12)",
    ],
    "An empty call is left out, and the last one has one token in any case.": [
        "runtime/parity/running.py: run_in_calls: tokens - 1 -> tokens + 1",
        "runtime/parity/running.py: run_in_calls: tokens - 1 -> tokens",
        "runtime/parity/running.py: run_in_calls: 1 -> 0",
        "runtime/parity/running.py: run_in_calls: tokens - 1 -> tokens (place 2)",
        "runtime/parity/running.py: run_in_calls: 1 -> 0 (place 2)",
    ],
}

EQUIVALENT = {name: reason for reason, names in REASONS.items() for name in names}
