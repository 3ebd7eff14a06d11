# SPDX-License-Identifier: Apache-2.0
"""Where clients, proxies and server stand: on one loopback, or in three namespaces joined by veth."""
import dataclasses
import pathlib
import subprocess
import sys

from stage import Netns

PORT_RANGE, TIME_WAIT_REUSE = "1024 65535", 1  # connections/s would run out of ports
# As on a Debian machine nobody has tuned. On loopback bbr paces every flow by timers: it would be what is measured.
TCP = {"tcp_congestion_control": "cubic", "tcp_rmem": "4096 131072 6291456", "tcp_wmem": "4096 16384 4194304"}
NAMES = {
    "loopback": "one namespace, its loopback",
    "veth": "three namespaces joined by veth, MTU 1500, every offload on",
    "nic": "three namespaces joined by veth, as from a NIC: MTU 1500, the ends' TSO and GSO off, the edge's GRO on",
}


@dataclasses.dataclass
class Network:
    client: Netns
    edge: Netns
    server: Netns
    edge_address: str
    server_address: str


def allowed(tcp):
    """`tcp` as this host lets a namespace have it: which congestion controls may be chosen there is a sysctl of the host's."""
    key, host = "tcp_congestion_control", pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control")
    tried = subprocess.run(["unshare", "--net", "sysctl", "-q", "-w", f"net.ipv4.{key}={tcp[key]}"], capture_output=True, check=False)
    if tried.returncode == 0:
        return tcp
    kept = host.read_text().strip()
    print(f"bench: {tcp[key]} is not in net.ipv4.tcp_allowed_congestion_control: {kept} it is", file=sys.stderr)
    return tcp | {key: kept}


def make(name, tcp):
    if name == "loopback":
        here = Netns()
        network = Network(here, here, here, "127.0.0.1", "127.0.0.1")
    else:
        network = Network(Netns(), Netns(), Netns(), "192.0.2.1", "198.51.100.80")
        network.client.join("eth0", "192.0.2.10", network.edge, "outside", "192.0.2.1", 1500)
        network.server.join("eth0", "198.51.100.80", network.edge, "inside", "198.51.100.1", 1500)
        network.edge.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        for end, gateway, device in ((network.client, "192.0.2.1", "outside"), (network.server, "198.51.100.1", "inside")):
            end.run("ip", "route", "add", "default", "via", gateway)
            if name == "nic":
                end.offload("eth0", tso=False, gso=False)
            network.edge.offload(device, gro=True)
    for netns in {id(n): n for n in (network.client, network.edge, network.server)}.values():
        netns.run("sysctl", "-q", "-w", f"net.ipv4.ip_local_port_range={PORT_RANGE}",
                  f"net.ipv4.tcp_tw_reuse={TIME_WAIT_REUSE}", "net.core.somaxconn=4096",
                  *(f"net.ipv4.{key}={value}" for key, value in tcp.items()))
    return network
