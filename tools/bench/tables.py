# SPDX-License-Identifier: Apache-2.0
"""Medians, ratios and what is printed of them."""
import statistics

import markdown
from loads import ADDED_PER_GB, ADDED_PER_REQUEST, CPU_PER_GB, CPU_PER_REQUEST


def medians(load, rounds):
    """{mode: {metric name and unit: median}} of [{mode: {metric: value}}]. What a mode adds is against direct of the same
    round, then the median."""
    values = {}
    for mode in rounds[0]:
        values[mode] = {m: statistics.median(one[mode][m] for one in rounds if mode in one)
                        for m in load.metrics if m in rounds[0][mode]}
    return values


def add_differences(one):
    """To one round's {mode: {metric: value}}."""
    for added, whole in ((ADDED_PER_GB, CPU_PER_GB), (ADDED_PER_REQUEST, CPU_PER_REQUEST)):
        if "direct" in one and whole in one["direct"]:
            for values in one.values():
                values[added] = values[whole] - one["direct"][whole]


def best_of(metric, values, names):
    known = [values[name][metric] for name in names if metric in values.get(name, {})]
    return metric.best(known) if known else None


def table(load, values, rivals, lanes):
    """Markdown. Beside each value its ratio to the best rival's."""
    metrics = [m for m in load.metrics if any(m in one for one in values.values())]
    rows = [["", *(f"{m.name}, {m.unit}" if m.unit else m.name for m in metrics), "bytes by lane"]]
    for name, one in values.items():
        cells = [name]
        for metric in metrics:
            if metric not in one:
                cells.append("")
                continue
            best = best_of(metric, values, rivals)
            ratio = f" ({one[metric] / best:.2f}x)" if best and best > 0 and name != "direct" else ""
            cells.append(f"{one[metric]:.{metric.digits}f}{ratio}")
        rows.append([*cells, lane_text(lanes.get(name, {}))])
    return markdown.table(rows)


def lane_text(lanes):
    moved = {name: count for name, count in lanes.items() if not name.startswith("change:")}
    total = sum(moved.values())
    if not total:
        return ""
    shares = ", ".join(f"{name} {count / total:.1%}" for name, count in moved.items() if count)
    changes = sum(count for name, count in lanes.items() if name.startswith("change:"))
    return f"{shares}; {changes} lane changes"
