"""The enrolment server as a machine on the internet sees it: real TLS, real curl, real pin."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from burst.join.bundle import Bundle, BundleError, File
from burst.model import LeaseState
from gateway.enrol import EnrolServer
from gateway.limits import Limits, TokenBucket
from gateway.tls import TlsError, TlsIdentity
from gateway.tokens import SecretError, SiteSecret, token_hash
from tests.gateway.store_stand_in import Tokens

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WALL_IS_BEHIND = timedelta(minutes=5)  # it was set back, and decisions do not follow
LEASE = "5f" * 16
NONCE, OTHER_NONCE = "0" * 32, "1" * 32
SECRET_CONTENT = b"the key of the farm"

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


@dataclass
class Gateway:
    """A server, the store behind it, and a clock to set."""

    server: EnrolServer
    tokens: Tokens
    secret: SiteSecret
    now: datetime = NOW
    bundle_error: str = ""
    token: str = field(init=False)

    def __post_init__(self) -> None:
        self.token = self.secret.token(LEASE)
        self.tokens.states[LEASE] = LeaseState.BOOTING
        self.tokens.mint(LEASE, token_hash(self.token), NOW + timedelta(minutes=20))

    def curl(
        self, path: str, body: object = None, *, pin: str = "", session: str = ""
    ) -> tuple[int, int, Any]:
        """curl's exit status, the HTTP status, the answer; as `join.sh` calls it."""
        command = ["curl", "-sS", "-k", "--pinnedpubkey", pin or self.server.pin, "-m", "20"]
        command += ["--noproxy", "*", "-w", "\n%{http_code}", self.server.url + path]
        text = body if isinstance(body, str) else json.dumps(body)
        if body is not None:
            command += ["--data-binary", "@-"]
        if session:
            command += ["-H", f"Authorization: Bearer {session}"]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=30, check=False
        )
        answer, _, status = done.stdout.rpartition("\n")
        return done.returncode, int(status or 0), json.loads(answer) if answer else None

    def enrol(self, token: str = "", nonce: str = NONCE) -> tuple[int, Any]:
        code, status, answer = self.curl("/enrol", {"token": token or self.token, "nonce": nonce})
        assert code == 0
        return status, answer


def start(state: Path, limits: Limits | None = None) -> Gateway:
    made: list[Gateway] = []
    secret, tokens = SiteSecret.load_or_create(state), Tokens()

    def bundle(lease_id: str) -> Bundle:
        if made[0].bundle_error:
            raise BundleError(made[0].bundle_error)
        return Bundle(node="cms-1", files=(File("/etc/munge/munge.key", SECRET_CONTENT, 0o400),))

    server = EnrolServer(
        address="127.0.0.1",
        port=0,
        identity=TlsIdentity.load_or_create(state, "198.51.100.1", NOW),
        secret=secret,
        store=tokens,
        bundle=bundle,
        clock=lambda: made[0].now,
        limits=limits or Limits(failures_burst=1000),
        wall=lambda: made[0].now - WALL_IS_BEHIND,
    )
    made.append(Gateway(server, tokens, secret))
    server.start()
    return made[0]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = start(tmp_path)
    yield gateway
    gateway.server.stop()


@needs_curl
class TestEnrol:
    def test_the_right_token_and_pin_get_the_bundle(self, gateway: Gateway) -> None:
        status, answer = gateway.enrol()

        assert status == 200
        assert answer["node"] == "cms-1"
        assert answer["session"] == gateway.secret.session(LEASE)
        assert answer["time"] == (NOW - WALL_IS_BEHIND).timestamp(), "as munge takes it"
        assert gateway.tokens.enrolments == [LEASE]

    def test_a_wrong_pin_is_refused_by_the_machine_before_it_says_anything(
        self, gateway: Gateway
    ) -> None:
        wrong = "sha256//" + "A" * 43 + "="

        code, status, answer = gateway.curl("/enrol", {"token": gateway.token}, pin=wrong)

        assert (code, status, answer) == (90, 0, None)
        assert gateway.tokens.enrolments == []

    def test_the_same_nonce_may_ask_again(self, gateway: Gateway) -> None:
        first = gateway.enrol()

        assert gateway.enrol() == first

    def test_another_nonce_may_not(self, gateway: Gateway) -> None:
        assert gateway.enrol()[0] == 200

        status, answer = gateway.enrol(nonce=OTHER_NONCE)

        assert status == 403
        assert "session" not in answer
        assert gateway.server.refusals == 1

    def test_an_expired_token_is_refused(self, gateway: Gateway) -> None:
        gateway.now = NOW + timedelta(minutes=21)

        assert gateway.enrol() == (403, {"error": "expired"})

    def test_expiry_does_not_cut_off_a_machine_that_asks_again(self, gateway: Gateway) -> None:
        gateway.enrol()
        gateway.now = NOW + timedelta(minutes=21)

        assert gateway.enrol()[0] == 200

    @pytest.mark.parametrize(
        "forge",
        [
            lambda token: token[:-1] + ("0" if token[-1] != "0" else "1"),
            lambda token: "6f" * 16 + token[32:],
            lambda token: token + "0",
            lambda token: "." + token.partition(".")[2],
            lambda _token: "x",
            lambda _token: "é" * 97,
            lambda _token: "",
        ],
    )
    def test_a_forged_token_never_reaches_the_store(self, gateway: Gateway, forge: Any) -> None:
        gateway.tokens.states.clear()  # a look-up would now fail

        code, status, _answer = gateway.curl(
            "/enrol", {"token": forge(gateway.token), "nonce": NONCE}
        )

        assert (code, status) == (0, 403)

    def test_a_genuine_token_that_was_never_minted_is_refused(self, gateway: Gateway) -> None:
        assert gateway.enrol(gateway.secret.token("aa" * 16))[0] == 403

    @pytest.mark.parametrize("state", [LeaseState.WANTED, LeaseState.REQUESTED])
    def test_a_machine_faster_than_the_gateway_is_told_to_wait(
        self, gateway: Gateway, state: LeaseState
    ) -> None:
        gateway.tokens.states[LEASE] = state
        assert gateway.enrol()[0] == 503

        gateway.tokens.states[LEASE] = LeaseState.BOOTING
        assert gateway.enrol()[0] == 200

    def test_an_ended_lease_gets_nothing(self, gateway: Gateway) -> None:
        gateway.tokens.states[LEASE] = LeaseState.TERMINATING

        assert gateway.enrol()[0] == 403

    def test_a_bundle_that_cannot_be_built_is_the_gateways_trouble(self, gateway: Gateway) -> None:
        gateway.bundle_error = "/etc/dvn/munge.key: Permission denied"

        status, answer = gateway.enrol()

        assert status == 503
        assert "munge" not in answer["error"]
        assert gateway.server.last_error == "/etc/dvn/munge.key: Permission denied"
        assert gateway.tokens.enrolments == []


@needs_curl
class TestReports:
    def test_an_enrolled_machine_reports_with_its_session(self, gateway: Gateway) -> None:
        session = gateway.enrol()[1]["session"]
        report = {"stage": "joined", "ok": True, "detail": "cms-1"}

        assert gateway.curl("/report", report, session=session)[1] == 204
        assert gateway.tokens.reports == [(LEASE, "joined", True, "cms-1")]

    def test_a_machine_that_cannot_enrol_reports_with_token_and_nonce(
        self, gateway: Gateway
    ) -> None:
        proof = {"token": gateway.token, "nonce": NONCE}
        report = {"stage": "link", "ok": False, "detail": "no GRE here\x1b[2J"}

        assert gateway.curl("/report", proof | report)[1] == 204
        assert gateway.tokens.reports == [(LEASE, "tunnel", False, "link: no GRE here?[2J")]
        assert gateway.tokens.enrolments == []

    def test_a_used_token_cannot_report_for_the_machine(self, gateway: Gateway) -> None:
        gateway.enrol()
        forged = {"token": gateway.token, "nonce": OTHER_NONCE, "stage": "link", "ok": False}

        assert gateway.curl("/report", forged)[1] == 403
        assert gateway.tokens.reports == []

    @pytest.mark.parametrize(
        "report", [{}, {"stage": "Link!"}, {"stage": "link", "ok": 1}, {"stage": 3, "ok": True}]
    )
    def test_an_odd_report_is_refused(self, gateway: Gateway, report: dict[str, Any]) -> None:
        session = gateway.enrol()[1]["session"]

        assert gateway.curl("/report", report, session=session)[1] == 400

    def test_alive_says_when_the_lease_is_over(self, gateway: Gateway) -> None:
        session = gateway.enrol()[1]["session"]
        assert gateway.curl("/alive", session=session)[1] == 200

        gateway.tokens.states[LEASE] = LeaseState.GONE
        assert gateway.curl("/alive", session=session)[1] == 410

    def test_a_token_is_no_session(self, gateway: Gateway) -> None:
        assert gateway.curl("/alive", session=gateway.token)[1] == 403
        assert gateway.curl("/alive")[1] == 403


@needs_curl
class TestHostileClients:
    @pytest.mark.parametrize(
        "body", ["", "{", "[]", "nul\0", '{"token": 1, "nonce": 2}', "[" * 8000, '"x"', "{}"]
    )
    def test_garbage_is_a_400(self, gateway: Gateway, body: str) -> None:
        assert gateway.curl("/enrol", body)[1] == 400

    def test_a_big_body_is_not_read(self, gateway: Gateway) -> None:
        code, status, _answer = gateway.curl("/enrol", json.dumps({"token": "x" * 10_000_000}))

        assert status == 413 or code in (55, 56)  # curl may still have been sending
        assert gateway.enrol()[0] == 200

    def test_unknown_paths_and_methods(self, gateway: Gateway) -> None:
        assert gateway.curl("/")[1] == 404
        assert gateway.curl("/alive", {})[1] == 404
        assert gateway.curl("/enrol")[1] == 404

    def test_who_guesses_is_soon_told_to_stop(self, tmp_path: Path) -> None:
        gateway = start(tmp_path, Limits(failures_burst=3, failures_rate=0.001))
        try:
            answers = [gateway.enrol("guess")[0] for _ in range(5)]
        finally:
            gateway.server.stop()

        assert answers == [403, 403, 403, 429, 429]

    def test_silent_and_slow_clients_are_cut_and_stop_nobody(self, tmp_path: Path) -> None:
        gateway = start(tmp_path, Limits(idle=5, deadline=1.0))
        where = ("127.0.0.1", gateway.server.port)
        silent = socket.create_connection(where, timeout=10)
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
        slow = unverified.wrap_socket(socket.create_connection(where, timeout=10))
        slow.send(b"POST /enrol HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        try:
            began = time.monotonic()
            assert gateway.enrol()[0] == 200  # while the other two wait
            assert silent.recv(1) == b""
            assert slow.recv(1) == b""
            assert time.monotonic() - began < 5
        finally:
            silent.close()
            slow.close()
            gateway.server.stop()

    def test_endless_headers_end(self, gateway: Gateway) -> None:
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
        where = ("127.0.0.1", gateway.server.port)
        headers = (b"X-Header: " + b"x" * 10_000 + b"\r\n") * 1000
        client = unverified.wrap_socket(socket.create_connection(where, timeout=10))
        try:
            with pytest.raises(OSError, match=r"reset|[Bb]roken pipe|EOF"):
                client.sendall(b"GET /alive HTTP/1.1\r\n" + headers)
        finally:
            client.close()
        assert gateway.enrol()[0] == 200

    def test_no_more_connections_than_allowed(self, tmp_path: Path) -> None:
        gateway = start(tmp_path, Limits(connections=2, idle=10))
        where = ("127.0.0.1", gateway.server.port)
        held = [socket.create_connection(where, timeout=10) for _ in range(2)]
        try:
            deadline = time.monotonic() + 5
            while gateway.curl("/alive")[1] != 0:  # until both were accepted
                assert time.monotonic() < deadline
            held.pop().close()
            while gateway.curl("/alive")[1] != 403:
                assert time.monotonic() < deadline
        finally:
            for each in held:
                each.close()
            gateway.server.stop()

    def test_many_at_once_one_nonce_wins(self, gateway: Gateway) -> None:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: answers.append(gateway.enrol(nonce=f"{n:032x}")[0]))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)

        assert sorted(answers) == [200] + [403] * 7


class TestServer:
    def test_an_address_that_cannot_be_had_is_named(self, gateway: Gateway) -> None:
        taken = gateway.server.port
        second = EnrolServer(
            address="127.0.0.1",
            port=taken,
            identity=gateway.server._identity,
            secret=gateway.secret,
            store=gateway.tokens,
            bundle=lambda _lease: Bundle(node="x"),
            clock=lambda: NOW,
        )
        with pytest.raises(OSError, match=f"127.0.0.1 port {taken}: Address already in use"):
            second.start()

    def test_stop_is_final_and_may_be_repeated(self, gateway: Gateway) -> None:
        port = gateway.server.port
        gateway.server.stop()
        gateway.server.stop()

        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


class TestSecrets:
    def test_a_restarted_daemon_has_the_same_pin_and_tokens(self, tmp_path: Path) -> None:
        first = TlsIdentity.load_or_create(tmp_path, "198.51.100.1", NOW)
        token = SiteSecret.load_or_create(tmp_path).token(LEASE)

        assert TlsIdentity.load_or_create(tmp_path, "198.51.100.2", NOW) == first
        assert SiteSecret.load_or_create(tmp_path).token(LEASE) == token
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}

    def test_another_site_has_others(self, tmp_path: Path) -> None:
        one, two = (SiteSecret.load_or_create(tmp_path / name) for name in "ab")

        assert one.token(LEASE) != two.token(LEASE)
        assert two.lease_of_token(one.token(LEASE)) is None

    def test_the_pin_is_the_one_openssl_computes(self, tmp_path: Path) -> None:
        import base64
        import hashlib

        from cryptography import x509
        from cryptography.hazmat.primitives import serialization as s

        identity = TlsIdentity.load_or_create(tmp_path, "198.51.100.1", NOW)
        key = x509.load_pem_x509_certificate(identity.path.read_bytes()).public_key()
        spki = key.public_bytes(s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo)

        digest = base64.b64encode(hashlib.sha256(spki).digest()).decode()
        assert identity.pin == f"sha256//{digest}"

    def test_a_damaged_key_is_named_with_the_way_out(self, tmp_path: Path) -> None:
        (tmp_path / "enrol.pem").write_text("not a key")

        with pytest.raises(TlsError, match=r"enrol\.pem: not a key this program made.*remove it"):
            TlsIdentity.load_or_create(tmp_path, "198.51.100.1", NOW)

    def test_a_damaged_secret_is_named_with_the_way_out(self, tmp_path: Path) -> None:
        (tmp_path / "site.secret").write_bytes(b"short")

        with pytest.raises(SecretError, match=r"site\.secret: has 5 bytes instead of 32; remove"):
            SiteSecret.load_or_create(tmp_path)

    def test_two_daemons_starting_together_agree(self, tmp_path: Path) -> None:
        tokens: set[str] = set()
        threads = [
            threading.Thread(
                target=lambda: tokens.add(SiteSecret.load_or_create(tmp_path).token(LEASE))
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=10)

        assert len(tokens) == 1

    def test_secrets_are_not_in_a_files_repr(self) -> None:
        assert "key of the farm" not in repr(File("/etc/munge/munge.key", SECRET_CONTENT))


class TestTokenBucket:
    def test_refills_at_its_rate_up_to_its_burst(self) -> None:
        bucket = TokenBucket(burst=2, rate=0.5)

        assert [bucket.take("peer", 0.0) for _ in range(3)] == [True, True, False]
        assert bucket.take("another", 0.0)
        assert [bucket.take("peer", 2.0) for _ in range(2)] == [True, False]
        assert [bucket.take("peer", 999.0) for _ in range(3)] == [True, True, False]

    def test_forgets_the_oldest_peer_first(self) -> None:
        bucket = TokenBucket(burst=1, rate=0.0)
        for number in range(5000):
            bucket.take(str(number), 0.0)

        assert not bucket.take("4999", 0.0)
        assert bucket.take("0", 0.0)
