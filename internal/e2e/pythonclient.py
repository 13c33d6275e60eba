"""Uses an agent as Debian's python3-consul does: each step fails the program when the answer is not what it expects."""

import sys
import threading
import time

import consul
from consul.base import CB

c = consul.Consul(host="127.0.0.1", port=int(sys.argv[1]))


def until(what, ok):
    end = time.monotonic() + 30
    while not ok():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def blocked(read):
    """Runs a blocking read beside the program; the result is got by calling what it returns."""
    result = []
    t = threading.Thread(target=lambda: result.append(read()))
    t.start()

    def get():
        t.join(30)
        assert result, "the read goes on"
        return result[0]

    return get


def put(path, **params):
    assert c.http.put(CB.bool(), "/v1/agent/" + path, params=params) is True


def kv():
    index, entry = c.kv.get("py/none")
    assert entry is None and int(index) > 0
    assert c.kv.put("py/a", "één".encode()) is True
    index, entry = c.kv.get("py/a")
    assert entry["Value"].decode() == "één" and entry["Flags"] == 0
    assert c.kv.put("py/a", "two", cas=1) is False
    assert c.kv.put("py/a", "two", cas=entry["ModifyIndex"], flags=3) is True
    index, _ = c.kv.get("py/a")
    answer = blocked(lambda: c.kv.get("py/a", index=index, wait="20s"))
    c.kv.put("py/other", "x")
    c.kv.put("py/a", "three")
    later, entry = answer()
    assert entry["Value"] == b"three" and int(later) > int(index)
    c.kv.put("py/b/c", b"\x00\xff")
    assert c.kv.get("py/", keys=True)[1] == ["py/a", "py/b/c", "py/other"]
    assert c.kv.get("py/", keys=True, separator="/")[1] == ["py/a", "py/b/", "py/other"]
    assert [e["Key"] for e in c.kv.get("py/", recurse=True)[1]] == ["py/a", "py/b/c", "py/other"]
    assert c.kv.get("py/b/c", consistency="consistent")[1]["Value"] == b"\x00\xff"
    assert c.kv.get("py/b/c", consistency="stale")[1] is not None
    assert c.kv.delete("py/a", cas=1) is False
    assert c.kv.delete("py/", recurse=True) is True
    assert c.kv.get("py/", recurse=True)[1] is None


def sessions():
    one = c.session.create(name="one", ttl=15, lock_delay=0, behavior="delete")
    two = c.session.create(name="two", lock_delay=1)
    assert c.session.info(one)[1]["TTL"] == "15s"
    assert c.session.renew(one)["ID"] == one
    assert len(c.session.list()[1]) == 2 and len(c.session.node("one")[1]) == 2
    assert c.kv.put("py/lock", "1", acquire=one) is True
    assert c.kv.put("py/lock", "2", acquire=two) is False
    index, entry = c.kv.get("py/lock")
    assert entry["Session"] == one and entry["LockIndex"] == 1
    answer = blocked(lambda: c.kv.get("py/lock", index=index, wait="20s"))
    assert c.session.destroy(one) is True
    assert answer()[1] is None
    assert c.kv.put("py/lock", "2", acquire=two) is True
    assert c.kv.put("py/lock", "2", release=two) is True
    assert c.session.destroy(two) is True
    try:
        c.session.renew(two)
    except consul.NotFound:
        pass
    else:
        raise AssertionError("a session that is gone was renewed")
    try:
        c.kv.put("py/lock", "3", acquire=two)
    except consul.ConsulException as e:
        assert "invalid session" in str(e), e
    else:
        raise AssertionError("a session that is gone locked")
    c.kv.delete("py/", recurse=True)


def services():
    assert c.agent.service.register("pyweb", "pyweb-1", address="127.0.0.9", port=80, tags=["a"], check=consul.Check.ttl("30s")) is True
    index, nodes = c.health.service("pyweb", passing=True)
    assert nodes == []
    answer = blocked(lambda: c.health.service("pyweb", passing=True, index=index, wait="20s"))
    # It still reports by GET, which servers have refused since 1.0: programs do as Patroni does, and send a PUT.
    assert c.agent.check.ttl_pass("service:pyweb-1", "fine") is False
    put("check/pass/service:pyweb-1", note="fine")
    until("it passes", lambda: len(c.health.service("pyweb", passing=True)[1]) == 1)
    answer()
    node = c.health.service("pyweb", passing=True, tag="a")[1][0]
    assert node["Service"]["Address"] == "127.0.0.9" and node["Service"]["Port"] == 80
    assert c.agent.services()["pyweb-1"]["Tags"] == ["a"]
    assert c.agent.checks()["service:pyweb-1"]["Status"] == "passing"
    assert c.catalog.services()[1]["pyweb"] == ["a"]
    assert c.catalog.service("pyweb")[1][0]["ServiceID"] == "pyweb-1"
    put("check/fail/service:pyweb-1", note="bad")
    until("it is critical", lambda: any(x["CheckID"] == "service:pyweb-1" for x in c.health.state("critical")[1]))
    assert c.health.checks("pyweb")[1][0]["Output"] == "bad"
    assert c.agent.service.maintenance("pyweb-1", True, "work") is True
    assert c.agent.service.maintenance("pyweb-1", False) is True
    assert c.agent.maintenance(True, "work") is True
    assert c.agent.maintenance(False) is True
    put("service/deregister/pyweb-1")
    until("it is gone", lambda: c.catalog.service("pyweb")[1] == [])
    assert c.agent.check.register("own", consul.Check.tcp("127.0.0.1", int(sys.argv[1]), "1s")) is True
    until("the port answers", lambda: c.agent.checks()["own"]["Status"] == "passing")
    put("check/deregister/own")


def others():
    assert c.status.leader().startswith("127.0.0.1:") and len(c.status.peers()) == 1
    assert c.agent.self()["Config"]["NodeName"] == "one"
    assert c.agent.members()[0]["Name"] == "one"
    assert c.catalog.datacenters() == ["dc1"]
    assert c.catalog.register("outside", "127.0.0.8", service={"service": "pydb", "port": 5432}) is True
    assert c.catalog.node("outside")[1]["Services"]["pydb"]["Port"] == 5432
    assert c.catalog.deregister("outside") is True
    assert c.health.node("one")[1][0]["CheckID"] == "serfHealth"
    event = c.event.fire("deploy", "53")
    until("the event came", lambda: any(e["ID"] == event["ID"] for e in c.event.list("deploy")[1]))
    query = c.query.create("consul", name="pyquery")["ID"]
    assert len(c.query.execute("pyquery")["Nodes"]) == 1
    assert c.query.delete(query) is True
    assert c.coordinate.nodes()[1] is not None
    # Its access control is that of before 1.4, which is no more.
    for call in (c.acl.list, c.acl.create):
        try:
            call()
        except (consul.ConsulException, KeyError):  # it does not look at the status of all answers
            pass
        else:
            raise AssertionError("tokens of old were answered")


for step in (kv, sessions, services, others):
    step()
    print("ok", step.__name__, flush=True)
