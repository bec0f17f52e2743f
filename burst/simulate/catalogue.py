"""Policies by name, with their numbers: `ours`, `never`, `one-per-job,cap=8`, ..."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from burst.model import Policy
from burst.simulate.baselines import LinearController, Never, OnePerJob, Utilisation
from burst.simulate.engine import PolicyDriver
from burst.simulate.production import Production

_OTHERS: Mapping[str, Callable[..., PolicyDriver]] = {
    "never": Never,
    "one-per-job": OnePerJob,
    "utilisation": Utilisation,
    "cobald-linear": LinearController,
}
_OF_PRODUCTION = ("cap", "budget")
NAMES = ("ours", *_OTHERS)


class UnknownPolicy(Exception):  # noqa: N818 - what it is, is said
    """There is no such policy, or it has no such number; the message says which there are."""


def policy_named(text: str, base: Policy) -> PolicyDriver:
    """`NAME[,NUMBER=VALUE...]`. `ours` takes `cap` (machines), `budget`, and each number of the
    site file's `policy` section, durations in seconds; it starts from `base`."""
    name, *settings = text.split(",")
    numbers = dict(_setting(word, text) for word in settings)
    if name == "ours":
        return _ours(text, numbers, base)
    maker = _OTHERS.get(name)
    if maker is None:
        raise UnknownPolicy(f"there is no policy {name!r}; there are {', '.join(NAMES)}")
    known = [] if maker is Never else list(inspect.signature(maker).parameters)
    values: dict[str, Any] = {}
    for key, value in numbers.items():
        if key not in known:
            raise UnknownPolicy(f"{name} has no {key!r}; it has {', '.join(known) or 'no numbers'}")
        values[key] = int(value) if key == "cap" else float(value)
    return _titled(maker(**values), text)


def _setting(word: str, text: str) -> tuple[str, Decimal]:
    key, equals, value = word.partition("=")
    try:
        number = Decimal(value)
    except InvalidOperation:
        equals = ""
    if not equals:
        raise UnknownPolicy(f"{word!r} in {text!r} is not NUMBER=VALUE, such as cap=8")
    return key.strip(), number


def _ours(text: str, numbers: Mapping[str, Decimal], base: Policy) -> PolicyDriver:
    more: dict[str, Any] = {}
    policy = base
    for key, value in numbers.items():
        if key in _OF_PRODUCTION:
            more[key] = int(value) if key == "cap" else value
            continue
        if not hasattr(base, key):
            has = "cap, budget, and what the site file's policy section has"
            raise UnknownPolicy(f"ours has no {key!r}; it has {has}")
        kind = type(getattr(base, key))
        turned: Any = timedelta(seconds=float(value)) if kind is timedelta else kind(value)
        policy = replace(policy, **{key: turned})
    return _titled(Production(policy, **more), text)


def _titled(driver: PolicyDriver, text: str) -> PolicyDriver:
    driver.name = text
    return driver
