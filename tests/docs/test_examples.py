"""The examples of the documentation do what the pages say."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.docs import pages
from tests.docs.pages import ROOT

EXAMPLES = ROOT / "docs/examples"
WHY_NOT = ROOT / "docs/how-to/why-not.md"
SITE_FILES = sorted(EXAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("path", SITE_FILES, ids=lambda path: path.name)
def test_example_site_files_are_valid(path: Path) -> None:
    from gateway.cli.main import app

    done = CliRunner().invoke(app, ["validate", str(path), "-o", "json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ok"]


def merged(whole: Any, part: Any) -> Any:
    if isinstance(whole, dict) and isinstance(part, dict):
        if part.get("type", whole.get("type")) != whole.get("type"):
            return part  # another batch system or provider has other keys
        return {**whole, **{k: merged(whole.get(k), v) for k, v in part.items()}}
    return part


def test_pieces_of_a_site_file_fit_into_the_whole(tmp_path: Path) -> None:
    from gateway import sitefile

    whole = yaml.safe_load((EXAMPLES / "site.yaml").read_text())
    found = 0
    for page in pages.pages():
        for text in pages.blocks(page, "yaml"):
            found += 1
            path = tmp_path / f"{page.stem}-{found}.yaml"
            path.write_text(yaml.safe_dump(merged(whole, yaml.safe_load(text))))
            sitefile.load(path)
    assert found


def test_the_whole_example_uses_every_section() -> None:
    from gateway import sitefile

    site = sitefile.load(EXAMPLES / "site.yaml")
    assert site.burst is not None
    assert [pool.name for pool in site.pools] == ["cms-aws"]
    assert site.burst.budgets
    assert list(site.site.networks())


@pytest.mark.kernel
def test_the_network_by_hand() -> None:
    script = pages.marked_script(ROOT / "docs/tutorial/first-burst.md", "by-hand")
    start, *lines = [line for line in script.splitlines() if line]
    assert start == "sudo unshare --net bash"
    dvn = f'dvn() {{ {shlex.quote(sys.executable)} -m gateway "$@"; }}'
    told = [f"echo {shlex.quote('$ ' + line)}\n{line}" for line in lines]
    done = subprocess.run(
        ["unshare", "--net", "bash", "-eu"],
        input="\n".join([dvn, *told]),
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.split(r"^\$ ", done.stdout, flags=re.MULTILINE)[1:]
    answers = [(line, answer) for line, _, answer in (part.partition("\n") for part in said)]
    assert [line for line, _ in answers] == lines
    applied = [answer for line, answer in answers if line.startswith("dvn apply")]
    assert "done and verified" in applied[0]
    assert applied[1].startswith("nothing to do")
    assert "done and verified" in applied[2]
    plans = [answer for line, answer in answers if line.startswith("dvn plan")]
    assert "+ address 10.9.0.1/24 on b-cms-farm" in plans[1], "the drift is found"
    shown = [answer for line, answer in answers if line.startswith("dvn show")]
    assert "b-cms-farm" in shown[0]
    assert shown[1] == "nothing of site mysite is in the kernel\n"


# -- why not --------------------------------------------------------------------------------------


def codes_in_the_source() -> set[str]:
    """The first word of every answer about a job or a pool, as `burst` gives it."""
    found = set()
    rooms = ("shop.py", "market.py", "routing.py", "queue.py", "policy/demand.py", "funds.py")
    for name in rooms:
        for node in ast.walk(ast.parse((ROOT / "burst" / name).read_text())):
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                first = node.value.elts[0]  # of `funds.no_money`: a code and its message
                if isinstance(first, ast.Constant):
                    found.add(str(first.value))
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            places = {"Bar": (0,), "Refusal": (1,), "answer": (1,), "_answer": (1, 2)}
            for place in places.get(called, ()):
                value = node.args[place] if len(node.args) > place else None
                if isinstance(value, ast.Constant) and re.fullmatch("[a-z-]+", str(value.value)):
                    found.add(str(value.value))
    return found


def test_every_reason_is_explained_and_no_other() -> None:
    section = WHY_NOT.read_text().partition("## The codes")[2].partition("## A lease")[0]
    told = re.findall(r"^\| `([a-z-]+)` \|", section, flags=re.MULTILINE)
    assert len(codes_in_the_source()) > 20
    assert set(told) == codes_in_the_source()
    assert len(told) == len(set(told))


def test_every_class_of_failure_is_explained() -> None:
    from burst.model import FailureClass

    section = WHY_NOT.read_text().partition("## A lease that failed")[2]
    cells = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    told = {word for cell in cells for word in re.findall(r"`([a-z_]+)`", cell)}
    assert told == set(FailureClass) - {FailureClass.INTERRUPTED}, "spot is not in this version"


# -- Slurm and EC2 --------------------------------------------------------------------------------


def test_what_is_said_of_slurm_conf_is_what_the_lab_runs() -> None:
    from lab.farm.config import Timing, Worker, slurm_conf

    runs = slurm_conf(
        cluster="lab",
        head="head",
        head_address="10.9.0.10",
        workers=[Worker("wn1", "10.9.0.11")],
        burst_partitions=["burst-cms"],
        timing=Timing(),
    ).splitlines()
    (block,) = pages.blocks(ROOT / "docs/how-to/prepare-slurm.md", "ini")
    for line in block.splitlines():
        assert any(running.startswith(line) for running in runs), line


def calls_of_the_provider() -> set[str]:
    """The AWS actions the EC2 provider uses, in the words of a policy."""
    rooms = ("ec2.py", "ec2_prices.py")
    source = "".join((ROOT / "burst/providers" / room).read_text() for room in rooms)
    names = set(re.findall(r'\.get_paginator\("(\w+)"\)', source))
    names |= set(re.findall(r"_ec2\(\)\.(?!get_paginator)(\w+)\(", source))
    actions = {"ec2:" + "".join(word.title() for word in name.split("_")) for name in names}
    if "TagSpecifications" in source:
        actions.add("ec2:CreateTags")
    return actions | ({"pricing:GetProducts"} if ".get_products(" in source else set())


def test_the_policy_allows_what_the_provider_does_and_no_more() -> None:
    policy = json.loads((EXAMPLES / "iam-policy.json").read_text())
    allowed: set[str] = set()
    for statement in policy["Statement"]:
        action = statement["Action"]
        allowed |= {action} if isinstance(action, str) else set(action)
    assert allowed == calls_of_the_provider()


def test_the_account_is_prepared_as_the_page_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import boto3
    from moto import mock_aws

    from docs.examples import prepare_ec2

    (words,) = [w for _, w in pages.shell_lines() if "docs/examples/prepare_ec2.py" in w]
    monkeypatch.setattr(sys, "argv", words[1:])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        prepare_ec2.main()
        made = yaml.safe_load(capsys.readouterr().out)
        ec2 = boto3.client("ec2", region_name=made["region"])
        (group,) = ec2.describe_security_groups(GroupIds=made["security_groups"])["SecurityGroups"]
        (rule,) = group["IpPermissions"]
        assert rule["IpProtocol"] == "47"
        assert rule["IpRanges"] == [{"CidrIp": "198.51.100.1/32"}]
        (subnet,) = ec2.describe_subnets(SubnetIds=[made["subnet"]])["Subnets"]
        (table,) = ec2.describe_route_tables(
            Filters=[{"Name": "vpc-id", "Values": [subnet["VpcId"]]}]
        )["RouteTables"]
        ways = {route["DestinationCidrBlock"]: route["GatewayId"] for route in table["Routes"]}
        assert ways["0.0.0.0/0"].startswith("igw-")
