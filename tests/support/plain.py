"""The comparison with a golden batch of docs/other-languages.md, in loops as a program in another language has them."""

import math

ACTS_PRE, ACTS_POST = "hook_sae_acts_pre", "hook_sae_acts_post"
OUTLIER_RATIO = 32


def errors_of(name, found, golden):
    """Return the token error and the element error of a tensor."""
    found, truth, pre = rows_of(found), truth_of(name, golden), truth_of(ACTS_PRE, golden)
    largest_token = largest_element = 0.0
    for t in range(len(found)):
        squares = 0.0
        for i in range(len(found[t])):
            scale = float(golden[f"scale.{name}"][t])
            if name in (ACTS_PRE, ACTS_POST):
                scale = max(scale, abs(pre[t][i]) / OUTLIER_RATIO)
            difference = abs(found[t][i] - truth[t][i])
            error = 0.0 if difference == 0 else difference / scale if scale else math.inf
            squares += error * error
            largest_element = larger(error, largest_element)
        largest_token = larger(math.sqrt(squares / len(found[t])), largest_token)
    return largest_token, largest_element


def accepts(outputs, golden, budgets, use_error_term):
    """Return whether the hooks that a graph computed pass the comparison."""
    for name, budget in budgets.items():
        token, element = errors_of(name, outputs[name], golden)
        if not (token <= budget["token"] and element <= budget["element"]):
            return False
    total = outputs["hook_sae_recons"]
    if use_error_term:
        total = total + outputs["hook_sae_error"]
    return (
        outputs["hook_sae_input"].tobytes() == golden["hook_sae_input"].tobytes()
        and ((outputs[ACTS_POST] != 0) == (golden[ACTS_POST] != 0)).all()
        and (total == outputs["hook_sae_output"]).all()
    )


def truth_of(name, golden):
    values, residuals = rows_of(golden[name]), rows_of(golden[f"residual.{name}"])
    return [[values[t][i] + residuals[t][i] for i in range(len(values[t]))] for t in range(len(values))]


def rows_of(array):
    return array.reshape(len(array), -1).tolist()


def larger(a, b):
    """Return the larger one of two errors; NaN counts as larger than any number, wherever it comes first."""
    return b if a <= b or math.isnan(b) else a
