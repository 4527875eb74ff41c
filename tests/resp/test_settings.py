"""Redis URLs: what they mean, and what is said of those that mean nothing."""

import ssl
from pathlib import Path

import pytest

from leasekeeper.errors import ConfigurationError
from leasekeeper.resp.settings import Address, Settings, Topology, parse_url

SECRET = "S3cret"


def test_a_redis_url_has_defaults() -> None:
    assert parse_url("redis://") == Settings(Topology.SINGLE, (Address("localhost", 6379),))


def test_a_full_redis_url() -> None:
    settings = parse_url("redis://bob:p%40ss%23@redis.example:7000/3?pool_max=8&read_ms=500")
    assert settings.addresses == (Address("redis.example", 7000),)
    assert (settings.username, settings.password, settings.db) == ("bob", "p@ss#", 3)
    assert (settings.pool_max, settings.pool_min, settings.read_ms) == (8, 5, 500)
    assert settings.tls is None


def test_an_ipv6_address() -> None:
    [address] = parse_url("redis://[::1]:7000").addresses
    assert address == Address("::1", 7000)
    assert str(address) == "[::1]:7000"


def test_a_unix_socket() -> None:
    settings = parse_url("unix://:pw@/run/redis%20.sock?db=2")
    assert settings.addresses == (Address(path="/run/redis .sock"),)
    assert (settings.password, settings.db) == ("pw", 2)
    assert str(settings.addresses[0]) == "unix:/run/redis .sock"


def test_sentinels() -> None:
    settings = parse_url(
        "redis+sentinel://:pw@s1:26380,s2,[::1]:26381/mymaster/2?sentinel_password=other"
    )
    assert settings.topology is Topology.SENTINEL
    assert settings.addresses == (
        Address("s1", 26380),
        Address("s2", 26379),
        Address("::1", 26381),
    )
    assert (settings.master_name, settings.db, settings.password) == ("mymaster", 2, "pw")
    sentinels = settings.for_sentinels()
    assert (sentinels.username, sentinels.password, sentinels.db) == (None, "other", 0)


def test_a_cluster() -> None:
    settings = parse_url("redis+cluster://:pw@n1:7000,n2:7001")
    assert settings.topology is Topology.CLUSTER
    assert settings.addresses == (Address("n1", 7000), Address("n2", 7001))


@pytest.mark.parametrize("scheme", ["rediss", "rediss+sentinel", "rediss+cluster"])
def test_tls_verifies_unless_told_otherwise(scheme: str) -> None:
    tls = parse_url(f"{scheme}://host/1" if "cluster" not in scheme else f"{scheme}://host").tls
    assert tls is not None
    assert tls.verify_mode is ssl.CERT_REQUIRED
    assert tls.check_hostname
    path = "" if "cluster" in scheme else "/1"
    tls = parse_url(f"{scheme}://host{path}?ssl_cert_reqs=none").tls
    assert tls is not None
    assert tls.verify_mode is ssl.CERT_NONE
    tls = parse_url(f"{scheme}://host{path}?ssl_check_hostname=false").tls
    assert tls is not None
    assert tls.verify_mode is ssl.CERT_REQUIRED
    assert not tls.check_hostname


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "begins with one of redis, rediss, unix"),
        (f"http://:{SECRET}@h", "begins with one of"),
        (f"REDIS://:{SECRET}@h", "begins with one of"),
        (f"redis://:a#{SECRET}@h", "a # in a Redis URL is written %23"),
        (f"redis://:a/{SECRET}@h:6379", "the database of a Redis URL is a number"),
        (f"redis://:a/{SECRET}@h:6379/0", "the database of a Redis URL is a number"),
        (f"redis://:a?{SECRET}@h:6379/0", "the hosts of a Redis URL are HOST:PORT"),
        (f"redis://:{SECRET}@h:port", "the hosts of a Redis URL are HOST:PORT"),
        (f"redis://:{SECRET}@h:65536", "the hosts of a Redis URL are HOST:PORT"),
        (f"redis://:{SECRET}@[::1", "the hosts of a Redis URL are HOST:PORT"),
        (f"redis://:{SECRET}@a,b", "for several, use"),
        (f"redis://:{SECRET}@h/one", "the database of a Redis URL is a number"),
        (f"redis://:{SECRET}@h/1/2", "the database of a Redis URL is a number"),
        (f"redis://:{SECRET}@h?db=one", "check its parameters"),
        (f"redis://:{SECRET}@h?db=-1", "a number from 0"),
        (f"redis://bob@h?x={SECRET}", "no parameter x here: it may have pool_max"),
        (f"redis://h?{SECRET}=x", "no parameter that here"),
        (f"redis://:{SECRET}@h?socket_timeout=1", "no parameter socket_timeout here"),
        (f"redis://:{SECRET}@h?ssl_cert_reqs=none", "no parameter ssl_cert_reqs here"),
        (f"rediss://:{SECRET}@h?ssl_cert_reqs=maybe", "one of none, optional, required"),
        (f"rediss://:{SECRET}@h?ssl_ca_certs=/none", "No such file or directory"),
        (f"redis://:{SECRET}@h?read_ms=0", "read_ms of the Redis URL is a whole number from 1"),
        (f"redis://:{SECRET}@h?pool_max=many", "pool_max of the Redis URL is a whole number"),
        (f"redis://:{SECRET}@h?pool_max=2", "pool_min of the Redis URL is greater than pool_max"),
        ("redis://bob@h", "a user name, and no password"),
        (f"redis+sentinel://:{SECRET}@h:26379", "names no master: redis+sentinel://HOST:PORT/"),
        (f"redis+sentinel://:{SECRET}@h/m/x", "the database of a Redis URL is a number"),
        (f"redis+cluster://:{SECRET}@h/1", "only database 0"),
        (f"redis+cluster://:{SECRET}@a,,:x", "the hosts of a Redis URL are HOST:PORT"),
        (f"unix://:{SECRET}@", "names a socket: unix:///PATH"),
    ],
)
def test_a_bad_url_is_one_line_without_its_secrets(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_url(url)
    text = str(refused.value)
    assert problem in text
    assert "\n" not in text
    assert SECRET not in text
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_settings_show_no_password() -> None:
    settings = parse_url(f"redis+sentinel://u:{SECRET}@h/m?sentinel_password=2{SECRET}")
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings.for_sentinels())


def test_a_certificate_without_its_key_is_a_bad_url(tmp_path: Path) -> None:
    file = tmp_path / "cert.pem"
    file.write_text("nonsense")
    with pytest.raises(ConfigurationError, match="in PEM"):
        parse_url(f"rediss://h?ssl_certfile={file}")
