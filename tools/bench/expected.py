# SPDX-License-Identifier: Apache-2.0
"""What penstock is expected to reach against the best rival, judged from the medians of this run."""
import loads as l
from tables import best_of

LOOPBACK, NIC = ("loopback", "veth"), ("nic",)
ANYWHERE = LOOPBACK + NIC
RATIOS = [  # networks, group, flows (None: any), metric, at most or at least, mode
    (LOOPBACK, "paced", None, l.ADDED_PER_GB, "<=", 0.6, "penstock"),
    (NIC, "paced", None, l.ADDED_PER_GB, "<=", 0.9, "penstock"),
    (ANYWHERE, "pingpong", 1, l.P50, "<=", 0.7, "penstock"),
    (ANYWHERE, "pingpong", 1, l.CPU_PER_REQUEST, "<=", 0.7, "penstock"),
    (ANYWHERE, "pingpong", 32, l.REQUESTS, ">=", 1.1, "penstock"),
    (ANYWHERE, "pingpong", 32, l.P99, "<=", 0.9, "penstock"),
    (LOOPBACK, "bulk", None, l.RATE, ">=", 1.1, "penstock"),
    (NIC, "bulk", None, l.RATE, ">=", 1.0, "penstock"),
    (NIC, "bulk", None, l.ADDED_PER_GB, "<=", 0.8, "penstock"),
    (ANYWHERE, "connections", None, l.CONNECTIONS, ">=", 1.0, "penstock"),
    (ANYWHERE, "bulk", None, l.RATE, ">=", 0.9, "penstock-relay"),
]
BOUNDS = [  # group, metric, at most; of penstock itself
    ("idle", l.USER_PER_FLOW, 2048),
    ("idle", l.WAKE_UPS, 1),  # the daemon's own housekeeping
]


def judge(network, load, values, rivals):
    """A line per expectation: (holds, text)."""
    for networks, group, flows, metric, sign, bound, mode in RATIOS:
        best = best_of(metric, values, rivals)
        if network not in networks or group != load.group or flows not in (None, load.flows) or mode not in values:
            continue
        if not best or best <= 0 or metric not in values[mode]:
            continue
        ratio = values[mode][metric] / best
        yield (ratio <= bound if sign == "<=" else ratio >= bound,
               f"{network} {load.name}: {mode} {metric.name} {ratio:.2f}x the best rival's, expected {sign} {bound}x")
    for group, metric, bound in BOUNDS:
        if group == load.group and metric in values.get("penstock", {}):
            value = values["penstock"][metric]
            yield value <= bound, f"{network} {load.name}: {metric.name} {value:.1f} {metric.unit}, expected <= {bound}"
