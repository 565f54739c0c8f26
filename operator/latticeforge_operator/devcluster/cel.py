"""CEL rules of CustomResourceDefinitions (`x-kubernetes-validations`).

Plain CEL with the standard string and optional extensions. Kubernetes' own functions (isURL,
quantity, ...) are not known here: a definition that uses them is refused when it is created, and
not silently weakened.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_optional, ext_strings

_USES_OLD_SELF = re.compile(r"\boldSelf\b")


class RuleError(ValueError):
    """A rule that cannot be compiled."""


@cache
def _environment() -> Any:
    return cel.NewEnv(
        variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN},
        extensions=[ext_strings.ExtStrings(), ext_optional.ExtOptional()],
    )


@lru_cache(maxsize=4096)
def compile_rule(expression: str) -> Any:
    """Compiles an expression; raises RuleError with the compiler's words."""
    try:
        return _environment().compile(expression)
    except RuntimeError as error:
        raise RuleError(str(error)) from error


def check(rule: dict[str, Any], value: Any, old: Any) -> str | None:
    """Evaluates a rule.

    Args:
        rule: `rule`, and optionally `message`, `messageExpression`.
        value: what `self` is.
        old: what `oldSelf` is; None on creation, when rules about a transition do not apply.

    Returns:
        Why the value is refused, or None.
    """
    expression = rule["rule"]
    if old is None and _USES_OLD_SELF.search(expression):
        return None
    result = compile_rule(expression).eval(data={"self": value, "oldSelf": old})
    if result.value() is True:
        return None
    if result.type() == cel.Type.ERROR:
        return f"{result.value()} evaluating rule: {rule.get('message') or expression}"
    return _message(rule, value, old)


def _message(rule: dict[str, Any], value: Any, old: Any) -> str:
    if "messageExpression" in rule:
        said = compile_rule(rule["messageExpression"]).eval(data={"self": value, "oldSelf": old})
        if said.type() == cel.Type.STRING:
            return str(said.value())
    return str(rule.get("message") or f"failed rule: {rule['rule']}").strip()
