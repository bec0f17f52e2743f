"""Every call to the kernel fails once, in every way: applied again, it converges.

The fault matrix: site changes x calls x kinds of failure. The kernel in memory refuses what the
real one refuses; tests/dvn/test_faults_kernel.py does the same on the real one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dvn.engine import Engine
from dvn.kernel.fake import FakeKernel
from dvn.kernel.state import HostLink
from dvn.kernel.steps import Step, Writes
from dvn.spec import Site
from tests.dvn.faults import KINDS, MOST_PASSES, Fault, FaultyFake, Kind, passes_until
from tests.dvn.sites import a_kernel, full_site, sites
from tests.dvn.test_change import smaller
from tests.dvn.test_engine import grown

EMPTY = Site.model_validate({"site": "cnaf"})
CHANGES = {
    "the first": (EMPTY, full_site()),
    "a lease more": (full_site(), grown(full_site())),
    "a lease less": (grown(full_site()), full_site()),
    "a network less": (full_site(), smaller()),
    "a network more": (smaller(), full_site()),
    "the last": (full_site(), EMPTY),
}


def meaning(kernel: FakeKernel) -> object:
    """All there is, without the order in which it came to be."""
    tables = {
        key: (frozenset(t.sets), frozenset(t.chains)) for key, t in sorted(kernel.tables.items())
    }
    return (
        dict(sorted(kernel.links.items())), dict(sorted(kernel.masters.items())),
        frozenset(kernel.addresses), tables, frozenset(kernel.things.values()),
        dict(sorted(kernel.values.items())), dict(sorted(kernel.foreign.items())),
    )  # fmt: skip


def prepared(first: Site) -> FakeKernel:
    kernel = a_kernel()
    # Somebody else's: must be there afterwards, untouched.
    kernel.foreign["br-foreign"] = HostLink("br-foreign", "bridge", 1400, True, False)
    Engine(kernel).apply(first)
    return kernel


def reference(first: Site, second: Site) -> tuple[object, int]:
    """Where it ends without a fault, and how many calls that takes."""
    kernel = prepared(first)
    counting = Fault(None, KINDS[0])
    Engine(FaultyFake(kernel, counting)).apply(second)
    return meaning(kernel), counting.calls


def passes_with(first: Site, second: Site, fault: Fault, *, behind: bool) -> tuple[int, object]:
    kernel = prepared(first)
    passes = passes_until(Engine(FaultyFake(kernel, fault, behind=behind)), second)
    assert fault.consumed
    assert Engine(kernel).plan(second).steps == ()
    return passes, meaning(kernel)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_any_call_may_fail_once(
    name: str, kind: Kind, record_property: Callable[[str, object], None]
) -> None:
    first, second = CHANGES[name]
    expected, calls = reference(first, second)
    worst: Counter[int] = Counter()
    for at in range(calls):
        for behind in (False, True):
            passes, found = passes_with(first, second, Fault(at, kind), behind=behind)
            assert found == expected, f"call {at}"
            worst[passes] += 1
    record_property("fault_points", worst.total())
    record_property("worst_passes", max(worst))
    assert max(worst) <= MOST_PASSES
    assert worst.total() == 2 * calls


@given(sites(), sites(), st.sampled_from(KINDS), st.booleans(), st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_any_change_of_any_site_may_fail_once(
    first: Site, second: Site, kind: Kind, behind: bool, data: st.DataObject
) -> None:
    expected, calls = reference(first, second)
    at = data.draw(st.integers(0, calls - 1))
    passes, found = passes_with(first, second, Fault(at, kind), behind=behind)
    assert passes <= MOST_PASSES
    assert found == expected


class Killed(BaseException):
    """SIGKILL: no handler runs, nothing is undone."""


class Dying(FakeKernel):
    """Dies in front of step `left`."""

    left = 0

    def perform(self, step: Step) -> Writes:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return super().perform(step)


@pytest.mark.parametrize("name", CHANGES)
def test_killed_between_any_two_steps_a_restart_finishes_it(name: str) -> None:
    first, second = CHANGES[name]
    expected, _calls = reference(first, second)
    steps = len(Engine(prepared(first)).plan(second).steps)
    for at in range(steps):
        kernel = prepared(first)
        dying = Dying(**kernel.__dict__)
        dying.left = at
        with pytest.raises(Killed):
            Engine(dying).apply(second)
        survivor = FakeKernel(**{k: v for k, v in dying.__dict__.items() if k != "left"})
        assert passes_until(Engine(survivor), second) == 1
        assert meaning(survivor) == expected


class Stubborn(Fault):
    """Fails at one call, and at each after it."""

    def call(self, what: str, act: Callable[[], Any], refusal: Callable[[str], Exception]) -> Any:
        self.at = self.calls if self.calls > 4 else None
        return super().call(what, act, refusal)


def test_the_matrix_can_fail() -> None:
    """The control: what goes on failing does not pass for converged."""
    with pytest.raises(AssertionError, match=f"not after {MOST_PASSES} passes"):
        passes_until(Engine(FaultyFake(a_kernel(), Stubborn(None, KINDS[2]))), full_site())
