# SPDX-License-Identifier: Apache-2.0
"""What is asked of every mode, and which numbers come of it."""
import dataclasses

STREAMS, SHORTS, PROXIED = range(3)  # a mode's ports, in this order; the server's likewise
SNI = "bench.example.net"


@dataclasses.dataclass(frozen=True)
class Metric:
    name: str
    unit: str
    best: callable  # max or min: of two values, the better
    digits: int = 2


RATE = Metric("rate", "Gbit/s", max)
CPU_PER_GB = Metric("CPU", "s/GB", min, 3)
ADDED_PER_GB = Metric("added CPU", "s/GB", min, 3)
REQUESTS = Metric("requests", "k/s", max, 1)
P50, P99, P999 = (Metric(name, "us", min, 0) for name in ("p50", "p99", "p99.9"))
CPU_PER_REQUEST = Metric("CPU", "us/request", min, 1)
ADDED_PER_REQUEST = Metric("added CPU", "us/request", min, 1)
CONNECTIONS = Metric("connections", "k/s", max, 2)
CPU_PER_CONNECTION = Metric("CPU", "us/connection", min, 1)
FLOWS = Metric("flows", "", max, 0)
USER_PER_FLOW = Metric("user memory", "B/flow", min, 0)
SLAB_PER_FLOW = Metric("slab", "B/flow", min, 0)
BPF_MEMORY = Metric("BPF memory", "MiB", min, 1)
WAKE_UPS = Metric("wake-ups", "/s", min, 1)
BUSY = Metric("machine busy", "ms/s", min, 1)

STREAMED = (RATE, CPU_PER_GB, ADDED_PER_GB)
ASKED = (REQUESTS, P50, P99, P999, CPU_PER_REQUEST, ADDED_PER_REQUEST)
SHORT = (CONNECTIONS, P50, P99, CPU_PER_CONNECTION)
IDLE = (FLOWS, USER_PER_FLOW, SLAB_PER_FLOW, BPF_MEMORY, WAKE_UPS, BUSY)


@dataclasses.dataclass(frozen=True)
class Load:
    name: str
    group: str  # what --only names
    what: str
    words: tuple  # of penstock-bench-load drive
    metrics: tuple
    flows: int
    port: int = STREAMS


def streamed(group, flows, direction, rate_bps=0):
    kind = {"bulk": "as fast as it goes", "paced": f"{rate_bps / 1e9:g} Gbit/s together, a portion a millisecond",
            "slow": f"readers that take {rate_bps / 1e9:g} Gbit/s together, senders that would send more"}[group]
    words = ("--load", group, "--rate", rate_bps // 8, *(["--down"] if direction == "down" else []))
    return Load(f"{group}-{flows}-{direction}", group, f"{flows} flow{'s' * (flows > 1)} {direction}, {kind}", words,
                STREAMED, flows)


def ping_pong(flows, size, text):
    return Load(f"pingpong-{flows}-{text}", "pingpong", f"{flows} flow{'s' * (flows > 1)}, {text} there and back",
                ("--load", "pingpong", "--size", size), ASKED, flows)


def all_loads(idle_flows):
    return [
        *(streamed("bulk", flows, direction) for flows in (1, 8, 64) for direction in ("up", "down")),
        streamed("paced", 8, "up", 2_000_000_000),
        streamed("paced", 8, "down", 2_000_000_000),
        streamed("paced", 64, "up", 500_000_000),
        *(ping_pong(flows, size, text) for flows in (1, 32) for size, text in ((1, "1B"), (16 << 10, "16KiB"))),
        Load("connections-plain", "connections", "32 at once: connect, 100 B there, 100 B back, close",
             ("--load", "connections"), SHORT, 32, SHORTS),
        Load("connections-sni", "connections", "32 at once: ClientHello routed by SNI, PROXY header sent, 100 B back, "
             "close", ("--load", "connections", "--sni", SNI), SHORT, 32, PROXIED),
        streamed("slow", 64, "down", 500_000_000),
        Load("idle", "idle", f"{idle_flows} flows open, nothing sent", ("--load", "idle"), IDLE, idle_flows),
    ]
