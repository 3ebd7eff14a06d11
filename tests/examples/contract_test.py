#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""every_key.toml has every key that there is, and `penstock check` takes it without a word; what is promised and not
there (base/unavailable.h) says so: a key at its line, a command, both with exit code 2.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib

from man_test import PREFIX, TABLES, UNKNOWN, accepted

INNER = {
    "listener timeouts": (f"{PREFIX}timeouts = {{ {UNKNOWN} = 1 }}\n", "in [listener.timeouts]"),
    "listener limits": (f"{PREFIX}limits = {{ {UNKNOWN} = 1 }}\n", "in [listener.limits]"),
    "upstream timeouts": (f"[upstream.u]\ntimeouts = {{ {UNKNOWN} = 1 }}\n", "in [upstream.timeouts]"),
}


def check(penstock, toml):
    """Exit code and what it says, FILE left out."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(toml)
        file.flush()
        ran = subprocess.run([penstock, "check", "-c", file.name], capture_output=True, text=True,
                             env={**os.environ, "DIRECTORY": "/run/every-key"})
        return ran.returncode, ran.stderr.replace(file.name + ":", "")


def used(config):
    """Table, as TABLES and INNER call it → the keys that stand in it."""
    upstreams, listeners = list(config["upstream"].values()), config["listener"]
    servers = [s for u in upstreams for s in u.get("servers", []) if isinstance(s, dict)]
    tables = {f"[{name}]": [config[name]] for name in config if name not in ("upstream", "listener")}
    tables |= {
        "[upstream.NAME]": upstreams,
        "[[listener]]": listeners,
        "[[listener.route]]": [r for l in listeners for r in l.get("route", [])],
        "log": [config["daemon"]["log"]],
        "servers": servers,
        "check": [u["check"] for u in upstreams if "check" in u],
        "accept_proxy": [l["accept_proxy"] for l in listeners if "accept_proxy" in l],
        "listener timeouts": [l["timeouts"] for l in listeners if "timeouts" in l],
        "listener limits": [l["limits"] for l in listeners if "limits" in l],
        "upstream timeouts": [u["timeouts"] for u in upstreams if "timeouts" in u],
    }
    return {table: {key for one in all_of_it for key in one} for table, all_of_it in tables.items()}


def names(header, array):
    found = re.search(rf"{array} = \{{(.*?)\}};", header, re.S)
    return re.findall(r'"([^"]+)"', found[1])


def with_key(path):
    """A configuration with this key in its last line."""
    table, _, key = path.partition(".")
    return {
        "listener": f"{PREFIX}{key} = 1\n",
        "upstream": f"[upstream.u]\nservers = \"192.0.2.1:25\"\n{key} = 1\n",
    }.get(table, f"{path} = 1\n")


def mistakes(penstock, every_key, header):
    code, said = check(penstock, every_key)
    if code != 0 or said:
        yield f"every_key.toml: exit code {code}: {said}"
    stands = used(tomllib.loads(every_key))
    for table, (toml, called) in (TABLES | INNER).items():
        accepts = accepted(penstock, toml, called)
        for key in sorted(accepts - stands[table]):
            yield f"{table} {key}: accepted, not in every_key.toml"
    keys, commands = names(header, "kUnavailableKeys"), names(header, "kUnavailableCommands")
    for key in keys:
        toml = with_key(key)
        code, said = check(penstock, toml)
        line = toml.count("\n")
        if code != 2 or not re.search(rf"^{line}:\d+: error: {re.escape(key)} is not available in this version$", said,
                                      re.M):
            yield f"{key}: exit code {code}: {said}"
    for command in commands:
        ran = subprocess.run([penstock, command, "add", "192.0.2.0/24", "--for", "1h"], capture_output=True, text=True)
        if ran.returncode != 2 or ran.stderr != f"penstock: {command} is not available in this version\n":
            yield f"{command}: exit code {ran.returncode}: {ran.stderr}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--penstock", required=True)
    parser.add_argument("--every-key", required=True)
    parser.add_argument("--unavailable", required=True)
    arguments = parser.parse_args()
    found = list(mistakes(arguments.penstock, open(arguments.every_key).read(), open(arguments.unavailable).read()))
    print("\n".join(found))
    sys.exit(1 if found else 0)


main()
