#!/usr/bin/python3 -B
# SPDX-License-Identifier: Apache-2.0
"""tools/bench/run --quick measures two modes on loopback and prints whole tables. Nothing here asks how fast."""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

RUN = pathlib.Path(__file__).resolve().parent.parent.parent / "tools/bench/run"
LOADS = {"bulk-8-up": "rate Gbit/s", "paced-8-up": "rate Gbit/s", "pingpong-1-1B": "requests k/s",
         "connections-plain": "connections k/s", "connections-sni": "connections k/s"}


class Quick(unittest.TestCase):
    build = None

    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory() as directory:
            file = pathlib.Path(directory) / "figures.json"
            words = [RUN, "--quick", "--build", cls.build, "--json", file]
            cls.done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
            cls.figures = json.loads(file.read_text()) if file.exists() else None

    def setUp(self):
        self.assertEqual(self.done.returncode, 0, self.done.stderr + self.done.stdout)

    def tables(self):
        """{load: rows of cells} as printed."""
        found, load = {}, None
        for line in self.done.stdout.splitlines():
            if line.startswith("### "):
                load = line[4:].split(":")[0]
                found[load] = []
            elif line.startswith("|") and load:
                found[load].append([cell.strip() for cell in line.strip("|").split("|")])
        return found

    def test_every_load_has_a_table_with_a_row_per_mode_and_no_cell_missing(self):
        tables = self.tables()
        self.assertEqual(list(tables), list(LOADS))
        for load, (head, rule, *rows) in tables.items():
            self.assertEqual([row[0] for row in rows], ["direct", "penstock"], load)
            for row in (rule, *rows):
                self.assertEqual(len(row), len(head), load)
            for row in rows:
                for cell in row[1:-1]:
                    self.assertRegex(cell, r"^-?\d+(\.\d+)?( \(-?\d+\.\d\dx\))?$", load)

    def test_every_mode_moved_something(self):
        for load, told in self.figures["networks"][0]["loads"].items():
            for mode in ("direct", "penstock"):
                self.assertGreater(told["medians"][mode][LOADS[load]], 0, f"{load} through {mode}")

    def test_penstock_carried_the_bytes_of_its_row(self):
        for load, told in self.figures["networks"][0]["loads"].items():
            lanes = told["lanes"]["penstock"]
            self.assertGreater(lanes["splice"] + lanes["relay"], 0, load)

    def test_the_table_says_of_what_it_is(self):
        self.assertIn(os.uname().release, self.done.stdout)
        self.assertIn("engine sockmap", self.done.stdout)
        self.assertIn("[[listener]]", self.done.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    Quick.build = parser.parse_known_args()[0].build
    if os.geteuid() != 0:
        print("skipped: needs root: namespaces, BPF")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1])
