"""Bills: shares that add up, periods, prices, and the records others read, to the letter."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from burst.model import Budget, Farm, Job, JobState, Offer
from burst.money import apel, ogf, records
from burst.money.limits import Limit, Period, since, tightest, until
from burst.money.prices import CORE_HOURS, Listed, PriceFileError, Pricing, read_price_file
from burst.money.usage import BY, LeaseUse, Work, cost_by, shares
from burst.money.watching import changes, key_of
from tests.burst.usage_schema import apel_records, wrong_in_ur
from tests.gateway.leases import lease

GOLDEN = Path(__file__).parent / "golden"
T0 = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def use(number: int = 1, hours: float = 4, amount: str = "0.404", **changes: object) -> LeaseUse:
    values = {
        "lease": f"{number:032x}",
        "tenant": "cms",
        "pool": "cms-aws",
        "provider": "aws",
        "type": "c5.large",
        "zone": "eu-south-1a",
        "node": f"cms-aws-{number:08x}",
        "cores": 2,
        "unit": "",
        "price_per_hour": Decimal("0.101"),
        "started": T0,
        "ended": T0 + hours * HOUR,
        "until": T0 + hours * HOUR,
        "amount": Decimal(amount),
    }
    return LeaseUse(**(values | changes))  # type: ignore[arg-type]


def work(job: str, start: float, end: float | None, cores: int = 1, number: int = 1) -> Work:
    return Work(
        lease=f"{number:032x}",
        job=job,
        started=T0 + start * HOUR,
        user="alice",
        account="higgs",
        cores=cores,
        ended=None if end is None else T0 + end * HOUR,
        name="reco",
    )


def test_a_job_pays_for_the_cores_it_held_and_nobody_for_the_rest() -> None:
    bill = cost_by("job", shares([use()], [work("10", 1, 3), work("9", 1, 2)]))
    assert [(cost.key, cost.amount) for cost in bill] == [
        ("9", Decimal("0.0505")),
        ("10", Decimal("0.101")),
        ("(no job)", Decimal("0.2525")),
    ]


def test_a_night_shift_is_on_two_days() -> None:
    bill = cost_by("day", shares([use()], []))
    assert [(cost.key, cost.amount) for cost in bill] == [
        ("2026-03-01", Decimal("0.202")),
        ("2026-03-02", Decimal("0.202")),
    ]


uses = st.lists(
    st.builds(
        use,
        number=st.integers(1, 4),
        hours=st.floats(0, 60),
        amount=st.decimals(0, 100, places=6).map(str),
        cores=st.integers(1, 8),
        unit=st.sampled_from(["", CORE_HOURS]),
    ),
    max_size=4,
    unique_by=lambda one: one.lease,
)
works = st.lists(
    st.builds(
        lambda job, start, length, cores, number: work(
            str(job), start, start + length, cores, number
        ),
        st.integers(1, 9),
        st.floats(0, 50),
        st.floats(0, 20),
        st.integers(1, 8),
        st.integers(1, 4),
    ),
    max_size=8,
    unique_by=key_of,
)


@given(uses, works, st.sampled_from(BY))
def test_whatever_it_is_added_up_by_the_sum_is_the_bill(
    of: list[LeaseUse], on: list[Work], by: str
) -> None:
    costs = cost_by(by, shares(of, on))
    assert sum(cost.amount for cost in costs) == sum(one.amount for one in of)
    assert all(cost.amount >= 0 for cost in costs)


@given(uses, works, st.floats(0, 60))
def test_two_windows_that_meet_are_one(of: list[LeaseUse], on: list[Work], hours: float) -> None:
    cut = T0 + hours * HOUR
    before = sum(share.amount for share in shares(of, on, None, cut))
    after = sum(share.amount for share in shares(of, on, cut, None))
    assert before + after == sum(one.amount for one in of)


@given(uses, works)
def test_the_rows_of_a_spreadsheet_add_up_to_the_bill(of: list[LeaseUse], on: list[Work]) -> None:
    rows = records.rows("cnaf", "EUR", of, on)
    assert sum(row.cost for row in rows) == sum(one.amount for one in of)


# -- what others read -----------------------------------------------------------------------------

USES = [use(1), use(2, hours=2, amount="0.202", started=T0, until=T0 + 2 * HOUR)]
WORKS = [
    work("4711", 0.5, 1.5, 2, 1),
    work("4711", 0.5, 1.5, 2, 2),  # one job on two machines
    work("4712", 1.5, 3.75, 1, 1),
]


def golden(name: str, text: str) -> None:
    assert text == (GOLDEN / name).read_text(encoding="utf-8")


def test_the_spreadsheet_to_the_letter() -> None:
    golden("usage.csv", records.as_csv(records.rows("cnaf", "EUR", USES, WORKS)))


def test_the_usage_records_to_the_letter() -> None:
    found = records.job_records(records.rows("cnaf", "EUR", USES, WORKS))
    text = ogf.document(found, "gw1.cnaf", T0 + 24 * HOUR)
    golden("usage.xml", text)
    root = ET.fromstring(text)
    assert root.tag == f"{{{ogf.NAMESPACE}}}UsageRecords"


def test_the_messages_for_apel_to_the_letter() -> None:
    found = records.job_records(records.rows("cnaf", "EUR", USES, WORKS))
    (message,) = apel.messages(found, "gw1.cnaf")
    golden("usage.apel", message)


def test_apel_gets_what_it_demands() -> None:
    found = records.job_records(records.rows("cnaf", "EUR", USES, WORKS))
    (message,) = apel.messages(found, "gw1.cnaf")
    read = apel_records(message)
    assert [fields["LocalJobId"] for fields in read] == ["4711", "4712"]
    for fields in read:
        assert int(fields["EndTime"]) - int(fields["StartTime"]) == int(fields["WallDuration"])
        held = int(fields["WallDuration"]) * int(fields["Processors"])
        assert int(fields["CpuDuration"]) == held


def test_usage_records_are_of_their_schema() -> None:
    found = records.job_records(records.rows("cnaf", "EUR", USES, WORKS))
    assert wrong_in_ur(ogf.document(found, "gw1.cnaf", T0)) == []


def test_a_name_that_is_no_domain_name_is_left_out() -> None:
    odd = use(node="cms_aws-1")
    text = ogf.document(
        records.job_records(records.rows("cnaf", "EUR", [odd], [work("1", 0, 1)])), "gw 1", T0
    )
    assert wrong_in_ur(text) == []
    assert "cms_aws" not in text
    assert "gw 1" not in text


def test_a_job_that_failed_is_told_so() -> None:
    failed = replace(work("1", 0, 1), outcome="failed")
    found = records.job_records(records.rows("cnaf", "EUR", [use()], [failed]))
    text = ogf.document(found, "gw1", T0)
    assert wrong_in_ur(text) == []
    assert "<urf:Status>failed</urf:Status>" in text


WRONG = [
    ("<urf:NodeCount>2<", "<urf:NodeCount>0<", "positiveInteger"),
    ("PT3600S", "3600", "duration"),
    ("<urf:SubmitHost>gw1.cnaf<", "<urf:SubmitHost>gw1_cnaf<", "domainName"),
    ("4711/2026", "4711\n2026", "token"),
    ("<urf:JobName>reco</urf:JobName>", "<urf:Title>reco</urf:Title>", "Title in JobUsageBlock"),
    ('urf:unit="EUR"', "", "attributes"),
    ("<urf:Status>completed</urf:Status>", "", "0 of Status"),
]


@pytest.mark.parametrize(("right", "wrong", "said"), WRONG, ids=[one[2] for one in WRONG])
def test_the_schema_notices(right: str, wrong: str, said: str) -> None:
    """The control of the tests above."""
    text = (GOLDEN / "usage.xml").read_text(encoding="utf-8")
    assert right in text
    assert any(said in one for one in wrong_in_ur(text.replace(right, wrong, 1)))


def test_a_message_has_at_most_a_thousand_records() -> None:
    many = [work(str(number), 0, 1) for number in range(2001)]
    found = records.job_records(records.rows("cnaf", "EUR", [use()], many))
    counted = [message.count("%%") for message in apel.messages(found, "gw1")]
    assert counted == [1000, 1000, 1]


@given(st.text() | st.text("%: \n", max_size=9))
@example("\x1e@")
@example("\n=1+1")
@example("%%%")
def test_no_job_name_breaks_a_record(name: str) -> None:
    odd = Work(use().lease, "1", T0, name, name, 1, T0 + HOUR, name)
    rows = records.rows("cnaf", "EUR", [use()], [odd])
    found = records.job_records(rows)
    (message,) = apel.messages(found, "gw1")
    (fields,) = apel_records(message)
    assert fields["LocalJobId"] == "1"
    assert wrong_in_ur(ogf.document(found, "gw1", T0)) == []
    for line in records.as_csv(rows).splitlines()[1:]:
        assert not line.startswith(("=", "+", "@"))


# -- periods and prices ---------------------------------------------------------------------------

PERIODS: tuple[Period, ...] = ("day", "week", "month", "year", "ever")


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.sampled_from(PERIODS),
)
def test_a_period_ends_where_the_next_begins(now: datetime, period: Period) -> None:
    end = until(period, now)
    assert since(period, now) <= now
    if end is not None:
        assert now < end
        assert since(period, end) == end
        assert since(period, end - timedelta(microseconds=1)) == since(period, now)


budget = st.builds(
    Budget,
    tenant=st.just("cms"),
    limit=st.decimals(0, 100, places=2),
    spent=st.decimals(0, 100, places=2),
    reserved=st.just(Decimal("1.5")),
    soft=st.none() | st.decimals(0, 100, places=2),
)


@given(st.lists(budget, min_size=1, max_size=4))
def test_the_tightest_allows_no_more_than_any(found: list[Budget]) -> None:
    one = tightest(found)
    assert one is not None
    assert one.free == min(each.free for each in found)
    rooms = [each.soft - each.spent - each.reserved for each in found if each.soft is not None]
    if rooms:
        assert one.soft is not None
        room = one.soft - one.spent - one.reserved
        assert room == min(*rooms, one.free)
    assert tightest([]) is None


def offer(kind: str = "c5.large", spot: bool = False) -> Offer:
    return Offer("aws", kind, "zone-a", 2, 4096, Decimal("0.11"), spot=spot)


def test_a_price_file_is_read_and_the_zone_counts_first() -> None:
    listed = read_price_file(
        "# of March\ntype, price_per_hour, zone, spot\nc5.large, 0.10\n"
        "c5.large, 0.09, zone-a\nc5.large, 0.03, , yes\n",
        "prices.csv",
    )
    assert listed[0] == Listed("c5.large", Decimal("0.10"))
    pricing = Pricing(listed=listed)
    assert pricing.price(offer()).price_per_hour == Decimal("0.09")
    assert pricing.price(offer(spot=True)).price_per_hour == Decimal("0.03")
    assert pricing.price(offer("m5.large")).price_per_hour == Decimal("0.11")


def test_a_quota_costs_cores() -> None:
    priced = Pricing(quota=True).price(offer())
    assert (priced.price_per_hour, priced.unit) == (Decimal(2), CORE_HOURS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "p.csv: there is no price in it; write type,price_per_hour"),
        ("type,cost\n", "p.csv:1: column 'cost' is not known"),
        ("type\n", "p.csv:1: a column is missing"),
        ("type,price_per_hour\nx,1 EUR\n", "p.csv:2: '1 EUR' is not a price; write it like 0.101"),
        ("type,price_per_hour\nx,-1\n", "p.csv:2: '-1' is not a price"),
        ("type,price_per_hour\n,1\n", "p.csv:2: there is no type"),
        ("type,price_per_hour\nx,1\n# why\nx,2\n", "p.csv:4: x has a price already; remove one"),
        ("type,price_per_hour,spot\nx,1,perhaps\n", "p.csv:2: spot is 'perhaps'; write yes or no"),
    ],
)
def test_a_wrong_price_file_is_told_by_line(text: str, said: str) -> None:
    with pytest.raises(PriceFileError) as caught:
        read_price_file(text, "p.csv")
    assert str(caught.value).startswith(said)


# -- who ran where --------------------------------------------------------------------------------


def job(name: str, state: JobState, started: datetime | None = T0, **changes: object) -> Job:
    values = {
        "id": name,
        "user": "alice",
        "account": "higgs",
        "state": state,
        "partitions": ("batch",),
        "cores": 4,
        "nodes": 2,
        "memory_mb": 10,
        "time_limit": HOUR,
        "submitted": T0,
        "started": started,
        "node_names": ("cms-aws-1", "cms-aws-2"),
    }
    return Job(**(values | changes))  # type: ignore[arg-type]


def test_jobs_on_borrowed_machines_are_noted_once_and_ended_when_they_are_gone() -> None:
    leases = [lease(1, wanted=T0 - HOUR), lease(2, wanted=T0 - HOUR)]
    known: dict[tuple[str, str, datetime], Work] = {}

    def look(*jobs: Job, at: datetime) -> list[Work]:
        found = changes(known, Farm(at, jobs, ()), leases, at)
        known.update({key_of(one): one for one in found})
        return found

    first = look(job("1", JobState.RUNNING), job("2", JobState.PENDING, None), at=T0)
    assert [(one.lease, one.job, one.cores, one.ended) for one in first] == [
        (leases[0].id, "1", 2, None),
        (leases[1].id, "1", 2, None),
    ]
    assert look(job("1", JobState.RUNNING), at=T0 + HOUR) == []
    ended = T0 + timedelta(minutes=70)
    done = look(job("1", JobState.DONE, ended=ended), at=T0 + 2 * HOUR)
    assert [one.ended for one in done] == [ended, ended]
    assert {one.outcome for one in done} == {"completed"}
    assert look(job("1", JobState.DONE, ended=ended), at=T0 + 3 * HOUR) == []
    short = job("3", JobState.FAILED, T0 + HOUR, ended=T0 + HOUR, node_names=("cms-aws-1",))
    assert [one.job for one in look(short, at=T0 + 3 * HOUR)] == ["3"], "between two looks"


def test_a_job_that_is_forgotten_ended_when_that_was_noticed() -> None:
    one = work("1", 0, None)
    missed = T0 + 5 * HOUR
    (found,) = changes({key_of(one): one}, Farm(missed, (), ()), [], missed)
    assert found.ended == missed


def test_limits_are_told_as_they_are_written() -> None:
    assert Limit(Decimal(5), "day").soft is None
