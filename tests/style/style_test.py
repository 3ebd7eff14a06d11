#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The house rules that a program can check, over the files git tracks. One line for each breach: FILE:LINE: rule: what.

  style_test.py [--cxx g++] [--include DIR]... [--stamps DIR]   exit 0 clean, 1 breaches, 77 clean as far as could be checked
  style_test.py --selftest                       every rule must catch its bad examples and pass its good ones
"""
import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile

PURE = {"tls", "proxy_protocol", "config", "route"}
# What a folder of userspace/ may include besides itself. abi is bpf/abi.h.
LAYERS = {
    "base": {"abi"},
    "keeper": {"base"},
    "crash": {"abi", "base"},
    "tls": {"abi", "base"},
    "proxy_protocol": {"abi", "base"},
    "config": {"abi", "base"},
    "route": {"abi", "base", "config"},
    "io": {"base"},
    "dns": {"base"},
    "sockmap": {"abi", "base"},
    "flow": {"abi", "base", "io", "dns", "sockmap"} | PURE,
    "check": {"base", "config", "dns", "proxy_protocol"},
    "daemon": {"abi", "base", "keeper", "io", "dns", "sockmap", "flow", "check", "crash"} | PURE,
}
# Whose headers stand where. A test may look at maps and at JSON with the library's own eyes.
THIRD_PARTY = [
    (r"liburing(\.h|/.*)", "liburing", ["userspace/io/io_uring.cc", "tools/bench/relay.cc", "tools/lab/kill.cc"]),
    (r"bpf/(libbpf|bpf|btf)\.h|.*\.skel\.h", "libbpf", ["userspace/sockmap/", "tests/"]),
    (r"ares(_.*)?\.h", "c-ares", ["userspace/dns/", "tests/fuzz/"]),
    (r"toml\+\+/.*", "toml++", ["userspace/config/"]),
    (r"spdlog/.*", "spdlog", ["userspace/base/"]),
    (r"nlohmann/.*", "nlohmann-json", ["userspace/daemon/", "tools/", "tests/"]),
    (r"boost/.*", "Boost.Beast", ["userspace/daemon/http.cc"]),
    (r"CLI/.*", "CLI11", ["userspace/main.cc", "tools/"]),
    (r"openssl/.*", "OpenSSL", ["userspace/check/tls_stream.cc", "tests/"]),
    (r"(gtest|gmock)/.*", "GoogleTest", ["tests/", "tools/"]),
]
TOP_LEVEL = {"CMakeLists.txt", "bpf", "userspace", "tools", "tests", "packaging", "README.md", "LICENSE"}
FORBIDDEN = re.compile(r"\.\./" + r"shared|(?<![\w.])/" + r"work/")
C_LIKE = (".h", ".c", ".cc")
SOURCES = C_LIKE + (".py", ".sh", ".cmake", "CMakeLists.txt")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.M)
RECEIVE = re.compile(r"\b(read|readv|recv|recvfrom|recvmsg|recvmmsg)\s*\(")


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def includes(text):
    return ((line_of(text, m.start()), m[1], m[2]) for m in INCLUDE.finditer(text))


def layers(path, text):
    if path.startswith("bpf/") and path.endswith(C_LIKE):
        for line, quote, name in includes(text):
            if quote == '"' and (name.split("/")[0] in LAYERS or ".." in name):
                yield line, f"bpf/ includes {name}: it is below everything in userspace/"
        return
    parts = path.split("/")
    if parts[0] != "userspace" or len(parts) < 3 or not path.endswith(C_LIKE):
        return
    own = parts[1]
    if own not in LAYERS:
        yield 1, f"userspace/{own}/ has no place in the layers"
        return
    for line, quote, name in includes(text):
        first = name.split("/")[0]
        if ".." in name.split("/"):
            yield line, f"{name}: name headers from userspace/ or from the top"
        elif name.startswith("bpf/") and quote == '"':
            if name != "bpf/abi.h":
                yield line, f"{name}: userspace sees bpf/abi.h alone"
            elif "abi" not in LAYERS[own]:
                yield line, f"{own} may not include {name}"
        elif "/" in name and first in {"tests", "tools", "support"} and quote == '"':
            yield line, f"{own} may not include {name}"
        elif "/" in name and first in LAYERS and first != own and first not in LAYERS[own]:
            yield line, f"{own} may not include {name}"


def third_party(path, text):
    if not path.endswith(C_LIKE):
        return
    for line, _, name in includes(text):
        for pattern, library, places in THIRD_PARTY:
            if re.fullmatch(pattern, name) and not path.startswith(tuple(places)):
                yield line, f"{name}: {library} is for {', '.join(places)}"


def spdx(path, text):
    lines = text.split("\n", 2)
    script = lines[0].startswith("#!")
    if not script and not path.endswith(SOURCES):
        return
    at = 1 if script else 0
    if len(lines) <= at or "SPDX-License-Identifier: " not in lines[at]:
        yield at + 1, "no SPDX-License-Identifier here"
    elif path.endswith(C_LIKE if path.startswith("bpf/") else ".bpf.c"):  # GPL helpers need it
        if not ("GPL-2.0" in lines[at] and "BSD-" in lines[at]):
            yield at + 1, "bpf/ and every *.bpf.c is dual-licensed, BSD and GPL-2.0"
    elif "Apache-2.0" not in lines[at]:
        yield at + 1, "the licence is Apache-2.0"


def forbidden_words(path, text):
    for m in FORBIDDEN.finditer(text):
        yield line_of(text, m.start()), f"{m[0]} is no place of this project"


def without_comments_and_strings(text):
    token = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'", re.S)
    return token.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)


def arguments(text, open_at):
    """Of the call whose parenthesis opens at `open_at`: (number of arguments, their text)."""
    depth, commas = 0, 0
    for at in range(open_at, len(text)):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        commas += text[at] == "," and depth == 1
        if depth == 0:
            return commas + 1, text[open_at : at + 1]
    return commas + 1, text[open_at:]


def received_bytes(path, text):
    if not path.startswith("userspace/flow/") or not path.endswith(C_LIKE):
        return
    code = without_comments_and_strings(text)
    for m in RECEIVE.finditer(code):
        count, inside = arguments(code, m.end() - 1)
        if count >= 3 and not re.search(r"\bMSG_(PEEK|TRUNC)\b", inside):
            yield line_of(code, m.start()), f"{m[1]}() without MSG_PEEK or MSG_TRUNC copies received bytes into our memory"


def header_says_what(path, text):
    if not path.endswith(".h") or path.startswith("bpf/"):
        return
    says = re.match(r"//[^\n]*\n// (\S+\.h): \S", text)
    if not says or not path.endswith(says[1]):
        yield 2, "a header begins with its path and what it is for"


def names_in_full(path, text):
    """What bpftool shows of a name ends after 15 characters."""
    if not path.endswith(".bpf.c"):
        return
    for m in re.finditer(r"^SEC\([^\n]*\)\s*\n?(?:int|long) (\w{16,})\(|^} (\w{16,}) SEC\(\"\.maps\"\)", text, re.M):
        yield line_of(text, m.end()), f"{m[1] or m[2]}: bpftool shows 15 characters of a name"


FILE_RULES = {
    "layers": layers,
    "third_party": third_party,
    "spdx": spdx,
    "forbidden_words": forbidden_words,
    "received_bytes": received_bytes,
    "header_says_what": header_says_what,
    "names_in_full": names_in_full,
}


def readme_commands(files):
    """Paths, commands and options that a README names exist. `files`: text by path."""
    places = set(files) | {path[:at] for path in files for at in range(len(path)) if path[at] == "/"}
    subcommands = set(re.findall(r'add_command\(app, o, "(\w+)"', files.get("tools/penstock/main.cc", "")))
    for path, text in files.items():
        if not path.endswith(".md"):
            continue
        for code in re.finditer(r"^```.*?^```|`[^`\n]+`", text, re.M | re.S):
            for m in re.finditer(r"(?<![\w./-])(?:tools|tests|userspace|bpf|packaging|\.ci)/[\w.-]+[\w./*-]*", code[0]):
                name = m[0].rstrip("./")
                if "*" not in name and name not in places:
                    yield path, line_of(text, code.start() + m.start()), f"there is no {name}"
            for m in re.finditer(r"(?:^|`|&& |\| )penstock ([a-z]+)", code[0], re.M):
                if m[1] not in subcommands:
                    yield path, line_of(text, code.start() + m.start(1)), f"there is no `penstock {m[1]}`"
            for m in re.finditer(r"tests/long/prove ([a-z-]+)", code[0]):
                if f"tests/long/{m[1].replace('-', '_')}.py" not in files:
                    yield path, line_of(text, code.start() + m.start()), f"there is no proof {m[1]}"
            for m in re.finditer(r"(tools/\w+)((?: --[a-z-]+)+)", code[0]):
                for option in m[2].split():
                    if m[1] in files and option not in files[m[1]] + files.get("tools/demo/demo.py", ""):
                        yield path, line_of(text, code.start() + m.start()), f"{m[1]} has no {option}"


def top_level(paths):
    present = {path.split("/")[0] for path in paths}
    for name in sorted(present - TOP_LEVEL):
        if not name.startswith("."):
            yield name, 1, "does not belong to the top level"
    for name in sorted(TOP_LEVEL - present):
        yield name, 1, "is missing from the top level"


def clang_format(root, paths):
    files = [path for path in paths if path.endswith(C_LIKE)]
    for at in range(0, len(files), 50):
        command = ["clang-format", "--dry-run", "--Werror", *files[at : at + 50]]
        run = subprocess.run(command, cwd=root, capture_output=True, text=True)
        seen = set()
        for path, line in re.findall(r"^([^\n:]+):(\d+):\d+: (?:error|warning):", run.stderr, re.M):
            if path not in seen:  # the first line of each file is enough
                seen.add(path)
                yield path, int(line), "not as clang-format -i would leave it"
        if run.returncode != 0 and not seen:
            yield ".clang-format", 1, run.stderr.strip()


def is_fresh(root, stamp, command):
    """Whether this command succeeded before and nothing it read has changed since."""
    try:
        with open(stamp, encoding="utf-8") as file:
            before, _, depends = file.read().partition("\n")
        made = os.stat(stamp).st_mtime
        read = depends.replace("\\\n", " ").split()[1:]
        return before == " ".join(command) and all(os.stat(os.path.join(root, f)).st_mtime < made for f in read)
    except OSError:
        return False


def standalone_headers(root, paths, cxx, directories, stamps):
    def compile_alone(path):
        command = [cxx, "-fsyntax-only", "-x", "c++", "-std=c++20", "-Wall", "-Wextra", "-D_GNU_SOURCE"]
        command += ["-DSPDLOG_FMT_EXTERNAL", '-DPENSTOCK_VERSION="0"', "-Iuserspace", "-I."]
        command += ["-Itests"] if path.startswith("tests/") else []
        command += [f"-I{directory}" for directory in directories] + ["-"]
        stamp = os.path.join(stamps, path.replace("/", "+"))
        if is_fresh(root, stamp, command):
            return path, 0, ""
        depends = f"{stamp}.d"
        source = f'#include "{path}"\n'
        run = subprocess.run(command + ["-MD", "-MF", depends], cwd=root, input=source, capture_output=True, text=True)
        if run.returncode == 0:
            with open(depends, encoding="utf-8") as read, open(stamp, "w", encoding="utf-8") as file:
                file.write(" ".join(command) + "\n" + read.read())
        return path, run.returncode, run.stderr

    headers = [p for p in paths if p.endswith(".h") and (p == "bpf/abi.h" or not p.startswith("bpf/"))]
    os.makedirs(stamps, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, code, errors in pool.map(compile_alone, headers):
            if code == 0:
                continue
            first = re.search(r"^([^\n:]+):(\d+):\d+: (?:fatal )?error: (.*)$", errors, re.M)
            where = int(first[2]) if first and first[1].endswith(path) else 1
            yield path, where, f"does not compile alone: {first[3] if first else errors.strip()}"


def tracked_files(root):
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=root, capture_output=True, text=True
    )
    if listing.returncode != 0:
        return None
    return [path for path in listing.stdout.split("\0") if path and os.path.isfile(os.path.join(root, path))]


def check(root, cxx, directories, stamps):
    paths = tracked_files(root)
    if paths is None:
        print("skipped: not a git checkout")
        return 77
    breaches = [(path, line, "top_level", what) for path, line, what in top_level(paths)]
    files = {}
    for path in paths:
        with open(os.path.join(root, path), encoding="latin-1", newline="") as file:
            files[path] = file.read()
    breaches += [(path, line, "readme_commands", what) for path, line, what in readme_commands(files)]
    for path, text in files.items():
        for rule, find in FILE_RULES.items():
            breaches += [(path, line, rule, what) for line, what in find(path, text)]
    with tempfile.TemporaryDirectory() as passing:
        headers = list(standalone_headers(root, paths, cxx, directories, stamps or passing))
    breaches += [(path, line, "standalone_headers", what) for path, line, what in headers]
    can_format = shutil.which("clang-format") is not None
    if can_format:
        breaches += [(path, line, "clang_format", what) for path, line, what in clang_format(root, paths)]
    for path, line, rule, what in breaches:
        print(f"{path}:{line}: {rule}: {what}")
    if breaches:
        print(f"{len(breaches)} breaches")
        return 1
    if not can_format:
        print("skipped: clang-format is not installed; everything else is clean")
        return 77
    print(f"{len(paths)} files, clean")
    return 0


# rule: (path, text, the line it must be caught at, or None)
EXAMPLES = {
    "layers": [
        ("userspace/flow/dial.cc", '#include "io/io.h"\n#include "bpf/abi.h"\n#include "flow/record.h"\n', None),
        ("userspace/base/fd.h", '#include <unistd.h>\n#include "flow/worker.h"\n', 2),
        ("userspace/tls/client_hello.cc", '#include "io/io.h"\n', 1),
        ("userspace/tls/client_hello.cc", "#include <io/io.h>\n", 1),
        ("userspace/route/route.h", '#include "config/config.h"\n', None),
        ("userspace/config/config.h", '\n\n#  include "route/route.h"\n', 3),
        ("userspace/config/config.h", '#include "dns/resolver.h"\n', 1),
        ("userspace/io/io.h", '#include "bpf/abi.h"\n', 1),
        ("userspace/dns/cache.h", '#include "sockmap/sockmap.h"\n', 1),
        ("userspace/sockmap/sockmap.h", '#include "bpf/abi.h"\n', None),
        ("userspace/sockmap/sockmap.h", '#include "bpf/kernel.h"\n', 1),
        ("userspace/sockmap/sockmap.h", '#include "tls/client_hello.h"\n', 1),
        ("userspace/flow/dial.cc", '#include "daemon/keeper.h"\n', 1),
        ("userspace/flow/dial.cc", '#include "../daemon/keeper.h"\n', 1),
        ("userspace/flow/dial.cc", '#include "support/netns.h"\n', 1),
        ("userspace/daemon/keeper.cc", '#include "flow/worker.h"\n', None),
        ("userspace/check/probe.cc", '#include "proxy_protocol/proxy_protocol.h"\n', None),
        ("userspace/check/probe.cc", '#include "flow/worker.h"\n', 1),
        ("userspace/flow/dial.cc", '#include "check/checker.h"\n', 1),
        ("userspace/main.cc", '#include "daemon/keeper.h"\n', None),
        ("userspace/crash/report.cc", '#include "base/log_ring.h"\n#include "bpf/abi.h"\n', None),
        ("userspace/crash/report.cc", '#include "flow/machine.h"\n', 1),
        ("userspace/flow/dial.cc", '#include "crash/report.h"\n', 1),
        ("userspace/util/strings.h", "", 1),
        ("bpf/penstock.bpf.c", '#include "abi.h"\n#include <bpf/bpf_helpers.h>\n', None),
        ("bpf/abi.h", '#include "base/endpoint.h"\n', 1),
    ],
    "third_party": [
        ("userspace/io/io_uring.cc", "#include <liburing.h>\n", None),
        ("userspace/io/io.cc", "#include <liburing.h>\n", 1),
        ("tools/bench/relay.cc", "#include <liburing.h>\n", None),
        ("userspace/flow/dial.cc", "#include <liburing.h>\n", 1),
        ("userspace/flow/dial.cc", "#include <liburing/io_uring.h>\n", 1),
        ("userspace/sockmap/sockmap.cc", '#include <bpf/libbpf.h>\n#include "penstock.skel.h"\n', None),
        ("userspace/daemon/admin.cc", "#include <bpf/bpf.h>\n", 1),
        ("tools/penstock/flows.cc", '#include "penstock.skel.h"\n', 1),
        ("bpf/penstock.bpf.c", "#include <bpf/bpf_helpers.h>\n", None),
        ("userspace/daemon/status.cc", "#include <ares.h>\n", 1),
        ("userspace/route/route.cc", "#include <toml++/toml.h>\n", 1),
        ("userspace/flow/close.cc", '#include "base/log.h"\n#include <spdlog/spdlog.h>\n', 2),
        ("userspace/config/load.cc", "#include <nlohmann/json.hpp>\n", 1),
        ("tools/penstock/flows.cc", "#include <nlohmann/json.hpp>\n#include <CLI/CLI.hpp>\n", None),
        ("userspace/daemon/keeper.cc", "#include <CLI/CLI.hpp>\n", 1),
        ("userspace/daemon/metrics.cc", "#include <boost/beast/http.hpp>\n", 1),
        ("userspace/tls/client_hello.cc", "#include <openssl/ssl.h>\n", 1),
        ("userspace/check/probe.cc", "#include <openssl/ssl.h>\n", 1),
        ("userspace/check/tls_stream.cc", "#include <openssl/ssl.h>\n", None),
        ("userspace/tls/client_hello.cc", "#include <gtest/gtest.h>\n", 1),
        ("tests/unit/client_hello_test.cc", "#include <gtest/gtest.h>\n#include <openssl/ssl.h>\n", None),
    ],
    "spdx": [
        ("userspace/base/fd.h", "// SPDX-License-Identifier: Apache-2.0\n", None),
        ("userspace/base/fd.h", "#pragma once\n// SPDX-License-Identifier: Apache-2.0\n", 1),
        ("userspace/base/fd.h", "// SPDX-License-Identifier: MIT\n", 1),
        ("userspace/base/fd.h", "", 1),
        ("tools/test", "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n", None),
        ("tools/test", "#!/bin/sh\nset -e\n", 2),
        ("tools/test", "#!/bin/sh", 2),
        ("tests/CMakeLists.txt", "add_test()\n", 1),
        ("bpf/abi.h", "/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */\n", None),
        ("bpf/abi.h", "/* SPDX-License-Identifier: Apache-2.0 */\n", 1),
        ("tests/bpf/oracle.bpf.c", "/* SPDX-License-Identifier: Apache-2.0 */\n", 1),
        ("README.md", "# penstock\n", None),
    ],
    "forbidden_words": [
        ("README.md", "\nsee .." + "/shared/NOTES.md\n", 2),
        ("tools/test", "cd /wor" + "k/main\n", 1),
        ("userspace/base/fd.h", "// userspace/network/work/shared\n", None),
    ],
    "received_bytes": [
        ("userspace/flow/classify.cc", "n = recv(fd, buffer, size, MSG_PEEK | MSG_DONTWAIT);\n", None),
        ("userspace/flow/classify.cc", "\nn = recv(fd, buffer,\n         size, MSG_DONTWAIT);\n", 2),
        ("userspace/flow/classify.cc", "n = recv(fd, nullptr, n, MSG_TRUNC);\n", None),
        ("userspace/flow/relay.cc", "n = ::read(fd, buffer, f(1, 2));\n", 1),
        ("userspace/flow/relay.cc", "n = readv(fd, iov, 1);\n", 1),
        ("userspace/flow/record.cc", "n = pread(memory, &header, sizeof header, 0);\n", None),  # of a socket it is ESPIPE
        ("userspace/flow/relay.cc", "n = recvmsg(fd, &message, 0);  // not MSG_PEEK\n", 1),
        ("userspace/flow/relay.cc", '// read(fd, buffer, n)\nlog("read(fd, buffer, n)");\n', None),
        ("userspace/flow/relay.cc", "on_read(a, b, c); eventfd_read(fd, &n); read(counter);\n", None),
        ("userspace/io/io.cc", "n = read(fd, buffer, n);\n", None),
    ],
    "header_says_what": [
        ("userspace/base/fd.h", "// SPDX\n// base/fd.h: an owned file descriptor.\n", None),
        ("userspace/base/fd.h", "// SPDX\n// base/descriptor.h: an owned file descriptor.\n", 2),
        ("userspace/base/fd.h", "// SPDX\n#pragma once\n", 2),
        ("userspace/base/fd.cc", "// SPDX\n#include <unistd.h>\n", None),
    ],
    "names_in_full": [
        ("bpf/penstock.bpf.c", 'SEC("sk_skb")\nint verdict(void *c)\n', None),
        ("bpf/penstock.bpf.c", 'SEC("sk_skb")\nint verdict_of_flows(void *c)\n', 2),
        ("bpf/penstock.bpf.c", '\nstruct {\n} directions_of_it SEC(".maps");\n', 3),
        ("bpf/penstock.bpf.c", 'static int a_helper_that_nobody_sees(void)\n', None),
    ],
}
README_EXAMPLES = [  # (text of a README, the line it must be caught at, or None)
    ("`tools/test` and `tests/long/prove stop` and `penstock flows`\n", None),
    ("tools/missing is only said\n", None),
    ("\n`tools/missing`\n", 2),
    ("```\ntools/test\npenstock fly\n```\n", 3),
    ("`tests/long/prove stopp`\n", 1),
    ("`tools/test --strict`\n", None),
    ("`tools/test --stricter`\n", 1),
]


def selftest(cxx):
    failures = []

    def expect(rule, what, wanted, got):
        if wanted != got:
            failures.append(f"{rule}: {what!r}: wanted {wanted}, got {got}")

    for rule, find in FILE_RULES.items():
        examples = EXAMPLES[rule]
        if not {None} < {caught for _, _, caught in examples}:
            failures.append(f"{rule}: needs an example that is caught and one that is not")
        for path, text, caught in examples:
            expect(rule, (path, text), [caught] if caught else [], [line for line, _ in find(path, text)])

    tree = {
        "tools/test": "--strict",
        "tests/long/prove": "",
        "tests/long/stop.py": "",
        "tools/penstock/main.cc": 'add_command(app, o, "flows"',
    }
    for text, caught in README_EXAMPLES:
        got = [line for _, line, _ in readme_commands({**tree, "README.md": text})]
        expect("readme_commands", text, [caught] if caught else [], got)

    whole = [f"{name}/x" if "." not in name and name != "LICENSE" else name for name in TOP_LEVEL]
    expect("top_level", "whole", [], list(top_level(whole + [".gitignore", ".ci/run"])))
    expect("top_level", "stray", ["notes.txt"], [name for name, _, _ in top_level(whole + ["notes.txt"])])
    expect("top_level", "lacking", ["LICENSE"], [name for name, _, _ in top_level(set(whole) - {"LICENSE"})])

    with tempfile.TemporaryDirectory() as root:
        files = {
            ".clang-format": "BasedOnStyle: Google\n",
            "userspace/base/good.h": "#pragma once\n#include <string>\nstd::string f();\n",
            "userspace/base/bad.h": "#pragma once\n\nstd::string   f();\n",
        }
        for path, text in files.items():
            os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
            with open(os.path.join(root, path), "w", encoding="ascii") as file:
                file.write(text)
        for _ in range(2):  # the second time good.h is fresh, and bad.h is caught again
            headers = list(standalone_headers(root, list(files), cxx, [], os.path.join(root, "stamps")))
            expect("standalone_headers", "bad.h", [("userspace/base/bad.h", 3)], [found[:2] for found in headers])
        with open(os.path.join(root, "userspace/base/good.h"), "a", encoding="ascii") as file:
            file.write("nonsense\n")
        headers = list(standalone_headers(root, list(files), cxx, [], os.path.join(root, "stamps")))
        expect("standalone_headers", "good.h, once changed", 2, len(headers))
        if shutil.which("clang-format"):
            unformatted = [found[:2] for found in clang_format(root, list(files))]
            expect("clang_format", "bad.h", [("userspace/base/bad.h", 3)], unformatted)

    for failure in failures:
        print(failure)
    print(f"{len(failures)} failures" if failures else f"{sum(map(len, EXAMPLES.values()))} examples, all as they should be")
    return 1 if failures else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    parser.add_argument("--cxx", default="g++")
    parser.add_argument("--include", action="append", default=[], help="another include directory for headers")
    parser.add_argument("--stamps", help="directory that remembers which headers compiled alone")
    parser.add_argument("--selftest", action="store_true")
    given = parser.parse_args()
    return selftest(given.cxx) if given.selftest else check(given.root, given.cxx, given.include, given.stamps)


sys.exit(main())
