import pytest

from adapterhub.core.hosts import is_loopback


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.254.255", "::1"])
def test_what_leads_to_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", [None, "", "127.0.0.256", "127.1", "128.0.0.1", "localhost.example.org", "127.0.0.1.org", "::2"]
)
def test_what_may_lead_elsewhere(host):
    assert not is_loopback(host)
