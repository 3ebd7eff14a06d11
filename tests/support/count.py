#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""count.py [--strict] [--refused] [--reports DIR] RESULTS: one line from ctest's JUnit file: "N passed, N failed[, N skipped]".

A GoogleTest program that is one ctest test counts by its cases. --strict: skipped tests count as failed.
--refused: the self-test refused this kernel, one more failure. --reports: of sanitizers, a failure each, whatever the
test in which it came said. Exit 1 when any failed.
"""
import argparse
import pathlib
import re
import sys
import xml.etree.ElementTree

CASES = {word: re.compile(rf"^\[  {word} +\] (\d+) tests?[.,]", re.M) for word in ("PASSED", "FAILED", "SKIPPED")}

# LeakSanitizer in a worker, of a thread that the process has of which it is a copy. Were it a leak, more would follow.
KEEPERS_THREAD = re.compile(r"(==\d+==Running thread \d+ was not suspended\. False leaks are possible\.\s*)+")


def cases(output, word):
    found = CASES[word].search(output)
    return int(found.group(1)) if found else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--refused", action="store_true")
    parser.add_argument("--reports", type=pathlib.Path)
    parser.add_argument("results")
    arguments = parser.parse_args()
    passed, failed, skipped = 0, int(arguments.refused), 0
    if arguments.refused:
        print("FAILED: the self-test refused this kernel (penstockd --probe, above)")
    for test in xml.etree.ElementTree.parse(arguments.results).getroot().iter("testcase"):
        output = test.findtext("system-out") or ""
        is_skipped = test.find("skipped") is not None
        if is_skipped:
            print(f"skipped: {test.get('name')}")
            skipped += 1
        elif test.get("status") == "run":
            passed += max(1, cases(output, "PASSED"))
            skipped += cases(output, "SKIPPED")
        else:
            print(f"FAILED: {test.get('name')}")
            failed += max(1, cases(output, "FAILED"))
            passed += cases(output, "PASSED")
    for report in sorted(arguments.reports.iterdir()) if arguments.reports else ():
        text = report.read_text(errors="replace")
        if not KEEPERS_THREAD.fullmatch(text):
            print(f"FAILED: {report}\n{text}")
            failed += 1
    if arguments.strict:
        failed, skipped = failed + skipped, 0
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
