# SPDX-License-Identifier: Apache-2.0
"""readers: flows that carried bytes both ways and are at rest, in both lanes. `bpftool map dump`, `penstock flows --json` and
`ss -tnei` must show the same cookies, addresses and byte counts, and those the clients and servers counted themselves."""
import random
import re
import resource
import socket

from daemon import Daemon, piped
from report import counts
from stage import Failed, Netns, Stage, wait_for

SERVER, EDGE = ("127.0.0.1", 7001), ("127.0.0.1", 7100)
BYTES_MAX = 20_000  # of a direction and a round: fits into the sockets' buffers, so one thread can play every part
PROXY_V2_BYTES = 28  # 16 and two IPv4 addresses with ports
SYN_BYTES = 1  # of bytes_acked, on the side that dialled
RELAYED_EVERY = 10  # one flow of so many is ordered into the relay lane between two rounds


def add_arguments(parser):
    parser.add_argument("--flows", type=int, default=1000)


def text(address):
    return f"{address[0]}:{address[1]}"


class Flow:
    """Both ends, and what they counted."""

    def __init__(self, listener):
        self.client = socket.create_connection(EDGE)
        self.server = listener.accept()[0]
        self.up = self.down = 0
        if len(self.server.recv(PROXY_V2_BYTES, socket.MSG_WAITALL)) != PROXY_V2_BYTES:
            raise Failed("no PROXY header")

    def carry(self, up, down):
        for source, target, size in ((self.client, self.server, up), (self.server, self.client, down)):
            source.sendall(bytes(size))
            if len(target.recv(size, socket.MSG_WAITALL)) != size:
                raise Failed("bytes are missing")
        self.up += up
        self.down += down

    def counted(self):
        return {"client": text(self.client.getsockname()), "server": text(SERVER), "up": self.up, "down": self.down}


def prove(options, report):
    files = 3 * options.flows + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, max(files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    with Stage(options.build) as stage:
        netns = Netns()
        daemon = Daemon(stage, netns, piped(text(SERVER), text(EDGE), upstream='proxy_protocol = "v2"'),
                        max_flows=2 * options.flows)
        with netns.inside(), socket.create_server(SERVER, backlog=options.flows) as listener:
            flows = [Flow(listener) for _ in range(options.flows)]
            carry(daemon, flows)
        expected = {f.client.getsockname()[1]: f.counted() for f in flows}
        # What was relayed is published at most 100 ms late.
        wait_for("the flows' counts to come to rest", lambda: from_map(daemon)[1] == expected)
        compare(report, expected, from_map(daemon), from_command(daemon), from_sockets(netns))
        lanes = [{lane for way in ("up", "down") for lane in ("spliced", "relayed") if value[way][f"{lane}_bytes"]}
                 for _, value in daemon.pinned("flows")]
        report.figure("lanes", f"{sum('spliced' in of for of in lanes)} flows with spliced bytes, "
                      f"{sum('relayed' in of for of in lanes)} with relayed ones")
        for flow in flows:
            flow.client.close()
            flow.server.close()
        daemon.wait_active(0)
        daemon.stop()


def carry(daemon, flows):
    dice = random.Random(1)
    for number in range(2):
        for flow in flows:
            flow.carry(dice.randint(1, BYTES_MAX), dice.randint(1, BYTES_MAX))
        if number == 0:
            with daemon.line() as line:
                for flow in daemon.flows()[::RELAYED_EVERY]:
                    line.ask("lane", cookie=flow["cookie"], direction="down", to="relay")


def by_port(rows):
    """(cookies, counted), each by the client's port; `rows`: (client cookie, upstream cookie or None, counted)."""
    port = {row[2]["client"]: int(row[2]["client"].rpartition(":")[2]) for row in rows}
    return ({port[row[2]["client"]]: row[:2] for row in rows}, {port[row[2]["client"]]: row[2] for row in rows})


def from_map(daemon):
    def carried(direction):
        return direction["spliced_bytes"] + direction["relayed_bytes"]
    return by_port([(key, value["upstream_cookie"], {"client": value["client"], "server": value["server"],
                                                     "up": carried(value["up"]), "down": carried(value["down"])})
                    for key, value in daemon.pinned("flows")])


def from_command(daemon):
    return by_port([(int(flow["cookie"]), None, {"client": flow["client"], "server": flow["server"],
                                                 "up": flow["directions"]["up"]["bytes"],
                                                 "down": flow["directions"]["down"]["bytes"]})
                    for flow in daemon.penstock("flows")["flows"]])


def from_sockets(netns):
    """The edge's two sockets of each flow, found by their cgroup: everything else here is ours. A dialled socket does not
    tell its client; the nearest thing that does is the flow's upstream cookie, so those come by cookie."""
    clients, upstreams = [], {}
    for line in netns.run("ss", "-tneiHO", "state", "established").splitlines():
        if not re.search(r"\bcgroup:\S*/penstock-\d+\s", line + " "):
            continue
        local, peer = line.split()[2:4]
        info = {name: int(value) for name, value in re.findall(r"\b(bytes_acked|bytes_received):(\d+)", line)}
        cookie = int(re.search(r"\bsk:([0-9a-f]+)", line)[1], 16)
        received, acked = info.get("bytes_received", 0), info.get("bytes_acked", 0)
        if local == text(EDGE):
            clients.append((cookie, None, {"client": peer, "up": received, "down": acked}))
        else:
            upstreams[cookie] = {"server": peer, "up": acked - SYN_BYTES - PROXY_V2_BYTES, "down": received}
    return by_port(clients), upstreams


def compare(report, expected, of_map, of_command, of_sockets):
    (map_cookies, map_counted), (command_cookies, command_counted) = of_map, of_command
    (client_cookies, client_counted), upstream_counted = of_sockets
    report.claim(len(expected) == len(map_counted) == len(command_counted) == len(client_counted) == len(upstream_counted),
                 "flows", f"{len(expected)} made; bpftool {len(map_counted)}, penstock flows {len(command_counted)}, "
                 f"ss {len(client_counted)} client and {len(upstream_counted)} upstream sockets")
    agree = {"client's cookie": 0, "upstream's cookie": 0, "addresses": 0, "bytes": 0}
    for port, own in expected.items():
        ours, command, client = map_counted.get(port, {}), command_counted.get(port, {}), client_counted.get(port, {})
        cookie, upstream_cookie = map_cookies.get(port, (0, 0))
        upstream = upstream_counted.get(upstream_cookie, {})
        agree["client's cookie"] += cookie == command_cookies.get(port, (None,))[0] == client_cookies.get(port, (None,))[0]
        agree["upstream's cookie"] += bool(upstream)
        agree["addresses"] += (own["client"] == ours.get("client") == command.get("client") == client.get("client")
                               and own["server"] == ours.get("server") == command.get("server") == upstream.get("server"))
        agree["bytes"] += all(own[way] == ours.get(way) == command.get(way) == client.get(way) == upstream.get(way)
                              for way in ("up", "down"))
    for what, flows in agree.items():
        report.claim(flows == len(expected), what, f"the same in every reader for {flows} of {len(expected)} flows")
    up, down = (sum(own[way] for own in expected.values()) for way in ("up", "down"))
    report.figure("bytes", counts({"up": up, "down": down}) + " in all; ss: client's bytes_received = up, bytes_acked = down; "
                  f"upstream's bytes_received = down, bytes_acked = up + {PROXY_V2_BYTES} (PROXY header) + {SYN_BYTES} (SYN)")
