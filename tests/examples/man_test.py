#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""penstock.toml(5) names every key that the parser accepts, table by table, and no other but as not available.

An unknown key makes the parser list those it accepts: `penstock check` is the oracle.
"""
import argparse
import re
import subprocess
import sys
import tempfile

UNKNOWN = "xxxxxxxxxxxxxxxx"
PREFIX = '[[listener]]\nbind = ":1"\nupstream = "u"\n'
# Heading in the page: (a configuration with an unknown key in that table, how the parser calls the table).
TABLES = {
    **{f"[{t}]": (f"[{t}]\n{UNKNOWN} = 1\n", f"in [{t}]")
       for t in ("daemon", "admin", "bpf", "flow", "dns", "timeouts", "limits")},
    "[upstream.NAME]": (f"[upstream.u]\n{UNKNOWN} = 1\n", "in [upstream.u]"),
    "[[listener]]": (f"[[listener]]\n{UNKNOWN} = 1\n", "in [[listener]]"),
    "[[listener.route]]": (f"{PREFIX}[[listener.route]]\n{UNKNOWN} = 1\n", "in [[listener.route]]"),
    # Tables within a value: their keys stand in the text of the key above.
    "log": (f"[daemon.log]\n{UNKNOWN} = 1\n", "in [daemon.log]"),
    "servers": (f"[upstream.u]\nservers = {{ {UNKNOWN} = 1 }}\n", "in a server"),
    "check": (f"[upstream.u]\ncheck = {{ {UNKNOWN} = 1 }}\n", "in a check"),
    "accept_proxy": (f"{PREFIX}accept_proxy = {{ {UNKNOWN} = 1 }}\n", "in accept_proxy"),
}


def accepted(penstock, toml, table):
    """The keys, or None where the table itself is not available."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(toml)
        file.flush()
        said = subprocess.run([penstock, "check", "-c", file.name], stderr=subprocess.PIPE, text=True).stderr
    found = re.search(re.escape(f'"{UNKNOWN}" {table}; accepted: ') + "(.*)", said)
    if found:
        return set() if "nothing" in found[1] else set(found[1].split(", "))
    if "not available in this version" in said:
        return None
    sys.exit(f"no list of keys in: {said}")


def page(text):
    """Heading → key → its text. Keys of a table within a value: heading is the key above."""
    sections = {}
    for section in re.split(r"^\.SH ", text, flags=re.M)[1:]:
        heading, _, body = section.partition("\n")
        if not heading.startswith("["):
            continue
        keys = {}
        for entry in re.split(r"^\.TP\n", body, flags=re.M)[1:]:
            tag, _, rest = entry.partition("\n")
            for key in re.findall(r"[a-z_]{3,}", tag):
                keys[key] = rest
            inner = set(re.findall(r"^\.B ([a-z_]+)$", rest, flags=re.M))
            for key in re.findall(r"[a-z_]{3,}", tag):
                if key in TABLES and (heading, key) != ("[dns]", "servers"):
                    sections[key] = dict.fromkeys(inner, "")
        sections[heading] = keys
    return sections


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--penstock", required=True)
    parser.add_argument("--page", required=True)
    arguments = parser.parse_args()
    sections = page(open(arguments.page).read())
    failed = 0
    for table, (toml, called) in TABLES.items():
        accepts = accepted(arguments.penstock, toml, called)
        if accepts is None:
            continue
        keys = {k: v for k, v in sections[table].items() if k != "or"}
        for key in sorted(accepts - set(keys)):
            print(f"{table} {key}: accepted, not in the page")
            failed += 1
        for key in sorted(set(keys) - accepts):
            if "Not available in this version" not in keys[key]:
                print(f"{table} {key}: in the page, not accepted")
                failed += 1
        for key in sorted(set(keys) & accepts):
            if "Not available in this version" in keys[key]:
                print(f"{table} {key}: accepted, and the page says it is not available")
                failed += 1
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
