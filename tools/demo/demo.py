#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The demo behind tools/quickstart: three namespaces (client, edge, servers), real sockets, one line per step.

A step that does not show what its line claims ends the demo with exit 1. Everything it makes is noted in a state file
first, so --stop can also clear away what a killed run left.
"""
import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
CLIENT_V4, CLIENT_V6 = "192.0.2.10", "2001:db8:1::10"
EDGE_V4, EDGE_V6 = "192.0.2.1", "2001:db8:1::1"
EDGE_INSIDE_V4, EDGE_INSIDE_V6 = "198.51.100.1", "2001:db8:2::1"
MAILBOX_V4, WEB_V6 = "198.51.100.25", "2001:db8:2::80"
WEB_NAME, MTA_STS_NAME = "www.example.net", "mta-sts.example.net"
MESSAGE_BYTES = 200_000
PATIENCE_S = 15


class Failed(Exception):
    pass


def run(*words, **options):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}: exit {done.returncode}: {done.stdout.strip()}")
    return done.stdout


def wait_for(what, predicate):
    deadline = time.monotonic() + PATIENCE_S
    while not predicate():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {PATIENCE_S} s")
        time.sleep(0.01)


def mounts():
    with open("/proc/self/mounts", encoding="utf-8") as table:
        return [line.split()[1:3] for line in table]


class Demo:
    """What exists only for the demo; stop() undoes it in reverse order."""

    def __init__(self, name, build):
        self.name = name
        self.build = build
        self.directory = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / name
        self.pin = pathlib.Path("/sys/fs/bpf") / name
        self.socket = self.directory / "admin.sock"
        self.state = {"mounts": [], "namespaces": [], "processes": []}
        self.children = {}

    def note(self, kind, value):
        self.state[kind].append(value)
        (self.directory / "state.json").write_text(json.dumps(self.state), encoding="utf-8")

    def namespace(self, role):
        return f"/run/netns/{self.name}-{role}"

    # ---- setting up ----

    def start(self):
        try:
            self.directory.mkdir(mode=0o755)
        except FileExistsError:
            raise Failed(f"{self.directory} exists: a demo is up, or was killed. tools/quickstart --stop clears it away")
        self.prepare_mounts()
        self.make_namespaces()
        self.make_certificates()
        self.start_servers()
        self.start_daemon()

    def prepare_mounts(self):
        def mount(kind, where):
            pathlib.Path(where).mkdir(parents=True, exist_ok=True)
            run("mount", "-t", kind, "none", str(where))
            self.note("mounts", str(where))

        if not os.path.exists("/proc/self/mounts"):
            mount("proc", "/proc")
        if not os.path.isdir("/sys/fs"):
            mount("sysfs", "/sys")
        if ["/sys/fs/bpf", "bpf"] not in mounts():
            mount("bpf", "/sys/fs/bpf")
        if not any(kind == "cgroup2" for _, kind in mounts()):
            mount("cgroup2", self.directory / "cgroup2")
        if not any(where == "/run/netns" for where, _ in mounts()):
            self.note("mounts", "/run/netns")  # `ip netns add` makes this one

    def make_namespaces(self):
        for role in ("client", "edge", "servers"):
            self.note("namespaces", f"{self.name}-{role}")
            run("ip", "netns", "add", f"{self.name}-{role}")
            run("ip", "-n", f"{self.name}-{role}", "link", "set", "lo", "up")
        self.join("client", (CLIENT_V4, CLIENT_V6), (EDGE_V4, EDGE_V6))
        self.join("servers", (MAILBOX_V4, WEB_V6), (EDGE_INSIDE_V4, EDGE_INSIDE_V6))

    def join(self, role, addresses, edge_addresses):
        there, edge = f"{self.name}-{role}", f"{self.name}-edge"
        run("ip", "-n", there, "link", "add", "eth0", "type", "veth", "peer", "name", f"to-{role}", "netns", edge)
        for namespace, device, (v4, v6) in ((there, "eth0", addresses), (edge, f"to-{role}", edge_addresses)):
            run("ip", "-n", namespace, "addr", "add", f"{v4}/24", "dev", device)
            run("ip", "-n", namespace, "addr", "add", f"{v6}/64", "dev", device, "nodad")
            run("ip", "-n", namespace, "link", "set", device, "up")

    def make_certificates(self):
        for name in (WEB_NAME, MTA_STS_NAME):
            run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
                "-keyout", str(self.directory / f"{name}.key"), "-out", str(self.certificate(name)))

    def certificate(self, name):
        return self.directory / f"{name}.pem"

    def spawn(self, role, label, *words):
        log = self.directory / f"{label}.log"
        with open(log, "wb") as out:
            child = subprocess.Popen(["nsenter", f"--net={self.namespace(role)}", *map(str, words)],
                                     stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        self.children[label] = child
        self.note("processes", child.pid)
        return child, log

    def spawn_until(self, line, role, label, *words):
        child, log = self.spawn(role, label, *words)
        wait_for(f"{label} to say '{line}'",
                 lambda: line in log.read_text(errors="replace") or child.poll() is not None)
        if child.poll() is not None:
            raise Failed(f"{label} ended with exit {child.returncode}:\n{log.read_text(errors='replace')}")

    def start_servers(self):
        python = ["/usr/bin/python3", "-B"]
        self.spawn_until("serving", "servers", "mailbox", *python, HERE / "mail_server.py", MAILBOX_V4, 25)
        for label, name, address, more in (("mta-sts", MTA_STS_NAME, MAILBOX_V4, []),
                                           ("web", WEB_NAME, WEB_V6, ["--proxy"])):
            self.spawn_until("serving", "servers", label, *python, HERE / "tls_server.py", name, address, 443,
                             self.certificate(name), self.directory / f"{name}.key", *more)

    def start_daemon(self):
        config = self.directory / "penstock.toml"
        config.write_text(f"""\
[admin]
socket = "{self.socket}"
http = ""

[bpf]
pin = "{self.pin}"
max_flows = 1024

[upstream.mailbox]
servers = ["{MAILBOX_V4}"]   # no port: the port the client came in on
proxy_protocol = "v2"

[upstream.mailbox-https]
servers = ["{MAILBOX_V4}:443"]

[upstream.web]
servers = ["[{WEB_V6}]:443"]
proxy_protocol = "v2"

[[listener]]
name = "mail"
bind = [":25"]
upstream = "mailbox"

[[listener]]
name = "web"
bind = [":443"]
upstream = "web"
  [[listener.route]]
  sni = ["mta-sts.*"]
  upstream = "mailbox-https"
""", encoding="utf-8")
        self.spawn_until("ready", "edge", "penstockd", self.build / "userspace/penstockd", "--config", config)

    # ---- looking ----

    def ask(self, command):
        return json.loads(run(str(self.build / "tools/penstock/penstock"), command, "--json", "--socket", str(self.socket)))

    def flow_of(self, client):
        """The one live flow of this client ('192.0.2.10:40000'), once it is open."""
        found = []

        def seen():
            found[:] = [f for f in self.ask("flows")["flows"] if f["client"] == client and f["phase"] == "open"]
            return len(found) == 1
        wait_for(f"a flow of {client}", seen)
        return found[0]

    @contextlib.contextmanager
    def inside(self, role):
        """Sockets made in this block belong to the namespace for good."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as home, open(self.namespace(role), "rb") as there:
            if libc.setns(there.fileno(), 0) != 0:
                raise Failed(f"setns: {os.strerror(ctypes.get_errno())}")
            try:
                yield
            finally:
                libc.setns(home.fileno(), 0)

    def connect(self, address, port):
        with self.inside("client"):
            return socket.create_connection((address, port), timeout=PATIENCE_S)

    # ---- taking down ----

    def stop_daemon(self):
        child = self.children["penstockd"]
        child.terminate()
        try:
            code = child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"penstockd did not end within {PATIENCE_S} s of SIGTERM")
        return code

    def stop(self):
        state = self.directory / "state.json"
        if state.exists():
            self.state = json.loads(state.read_text(encoding="utf-8"))
        for pid in self.state["processes"]:
            self.end_process(pid)
        for child in self.children.values():
            child.wait()
        if self.pin.is_dir():
            shutil.rmtree(self.pin)
        for namespace in self.state["namespaces"]:
            subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL, check=False)
        for where in reversed(self.state["mounts"]):
            subprocess.run(["umount", where], stderr=subprocess.DEVNULL, check=False)
            if where == "/run/netns" and os.path.isdir(where):
                os.rmdir(where)
        shutil.rmtree(self.directory, ignore_errors=True)

    def end_process(self, pid):
        """By its number, and only if it is ours: numbers are used again."""
        def ours():
            try:
                command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                return False
            return bool(command) and any(word in command for word in (str(self.directory).encode(), str(HERE).encode()))
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if not ours():
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + 2
            while ours() and time.monotonic() < deadline:
                for child in self.children.values():
                    child.poll()
                time.sleep(0.01)

    def leftovers(self):
        names = run("ip", "netns", "list").split()
        left = [str(p) for p in (self.directory, self.pin) if p.exists()]
        left += [n for n in self.state["namespaces"] if n in names]
        left += [f"process {p}" for p in self.state["processes"] if os.path.exists(f"/proc/{p}")]
        left += [f"mount {m}" for m in self.state["mounts"] if any(m == where for where, _ in mounts())]
        return left


# ---- the steps ----

def claim(observed, what):
    if not observed:
        raise Failed(what)


def endpoint(sock):
    address, port = sock.getsockname()[:2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def lanes_of(flow, expected_lane):
    lanes = {name: direction["lane"] for name, direction in flow["directions"].items()}
    claim(all(lane == expected_lane for lane in lanes.values()), f"the lanes are {lanes}, not {expected_lane}")
    return f"lanes up {lanes['up']}, down {lanes['down']}"


def message():
    line = b"The pipe carries the water past everything else to the turbine.\r\n"
    return line * (MESSAGE_BYTES // len(line))


def mail(demo, address, client, lane):
    """Sends a message; returns what was shown, and the dump of the flow while it was open."""
    stream = demo.connect(address, 25)
    lines = stream.makefile("rb")

    def say(text, expected):
        if text is not None:
            stream.sendall(text)
        answer = lines.readline().decode().strip()
        claim(answer.startswith(expected), f"'{answer}' where '{expected}' was expected")
        return answer
    greeting = say(None, "220 ")
    claim(greeting == f"220 demo ESMTP, you are {client}", f"the server greets with '{greeting}', not with {client}")
    for text in (b"EHLO client\r\n", b"MAIL FROM:<a@example.net>\r\n", b"RCPT TO:<b@example.net>\r\n"):
        say(text, "250")
    say(b"DATA\r\n", "354")
    body = message()
    answer = say(body + b".\r\n", "250")
    claim(f"{len(body)} bytes, sha256 {hashlib.sha256(body).hexdigest()}" in answer, f"the message changed: '{answer}'")
    flow = demo.flow_of(endpoint(stream))
    shown_lanes = lanes_of(flow, lane)
    dump = run("bpftool", "map", "dump", "pinned", str(demo.pin / "flows")) if (demo.pin / "flows").exists() else None
    claim(dump is None or str(flow["cookie"]) in dump, f"bpftool does not show the flow {flow['cookie']}:\n{dump}")
    say(b"QUIT\r\n", "221")
    claim(lines.read() == b"", "bytes after the last answer")
    stream.close()
    return (f"reached the mailbox, which greets 'you are {client}' (learned from PROXY v2) "
            f"and took {len(body)} bytes unchanged; {shown_lanes}"), dump


def web(demo, address, name, client, lane):
    context = ssl.create_default_context(cafile=str(demo.certificate(name)))
    with context.wrap_socket(demo.connect(address, 443), server_hostname=name) as stream:
        stream.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        body = stream.recv(4096).decode().rsplit("\r\n\r\n", 1)[-1].strip()
        claim(body == f"I am {name}, you are {client}", f"the server says '{body}'")
        flow = demo.flow_of(endpoint(stream))
        claim(flow["sni"] == name, f"the flow's SNI is '{flow['sni']}'")
        return f"'{body}', its certificate verified: TLS is end to end; {lanes_of(flow, lane)}"


def show(label, text):
    print(f"ok   {label}: {text}", flush=True)


def steps(demo):
    status = demo.ask("status")
    engine = status["engine"]
    lane = "splice" if engine == "sockmap" else "relay"
    show("daemon", f"penstockd serves in its own namespace, engine {engine} ({status['engine_reason']})")
    text, dump = mail(demo, EDGE_V4, CLIENT_V4, lane)
    show("mail, IPv4", text)
    if engine == "sockmap":
        claim(dump is not None, f"{demo.pin}/flows is not there")
        show("bpftool", f"that flow, while it was open, in `bpftool map dump pinned {demo.pin}/flows`:")
        print("".join(f"       {line}\n" for line in dump.strip().splitlines()), end="")
    show("mail, IPv6", mail(demo, EDGE_V6, CLIENT_V6, lane)[0])
    show(f"TLS, IPv4, SNI {WEB_NAME}", web(demo, EDGE_V4, WEB_NAME, CLIENT_V4, lane))
    show(f"TLS, IPv6, SNI {WEB_NAME}", web(demo, EDGE_V6, WEB_NAME, CLIENT_V6, lane))
    show(f"TLS, IPv6, SNI {MTA_STS_NAME}",
         web(demo, EDGE_V6, MTA_STS_NAME, EDGE_INSIDE_V4, lane) + " (no PROXY header on this route: it sees the edge)")

    wait_for("the flows to end", lambda: demo.ask("status")["totals"]["active"] == 0)
    totals = demo.ask("status")["totals"]
    closed = {reason: n for reason, n in totals["closed"].items() if n}
    claim(totals["accepted"] == 5 == sum(closed.values()), f"the accounts do not add up: {totals}")
    show("accounts", f"accepted {totals['accepted']} = active 0 + closed " +
         " + ".join(f"{reason} {n}" for reason, n in closed.items()))
    carried = {name: totals["bytes"].get(name, 0) for name in ("splice", "relay")}
    share = 100 * carried[lane] / max(1, sum(carried.values()))
    claim(share >= 99, f"only {share:.1f} % of the bytes went by {lane}: {carried}")
    show("bytes", f"{carried['splice']} by splice (moved by the kernel alone), {carried['relay']} by relay")


def explain_kept(demo):
    print(f"""
The demo stays up. Try (curl needs `apt-get install curl`):
  nsenter --net={demo.namespace('client')} curl --cacert {demo.certificate(WEB_NAME)} --resolve {WEB_NAME}:443:{EDGE_V4} https://{WEB_NAME}/
  nsenter --net={demo.namespace('client')} openssl s_client -connect {EDGE_V4}:443 -servername {MTA_STS_NAME}
  {demo.build}/tools/penstock/penstock flows --socket {demo.socket}
  {demo.build}/tools/penstock/penstock status --socket {demo.socket}
  bpftool map dump pinned {demo.pin}/flows
Its configuration and logs: {demo.directory}
Stop it: tools/quickstart --stop""" + ("" if demo.name == "penstock-quickstart" else f" --name {demo.name}"))


def main():
    parser = argparse.ArgumentParser(prog="tools/quickstart", description="the main job on a demo of its own")
    parser.add_argument("--build", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--name", default="penstock-quickstart",
                        help="of the namespaces, the pin directory and the temporary directory")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--keep", action="store_true", help="leave the demo up")
    group.add_argument("--stop", action="store_true", help="take down a demo that was kept")
    arguments = parser.parse_args()
    demo = Demo(arguments.name, arguments.build.resolve())
    if arguments.stop:
        demo.stop()
        return 0

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupted(number, _frame):
        for each in signals:  # what follows is the clearing away
            signal.signal(each, signal.SIG_IGN)
        raise Failed(signal.Signals(number).name)
    for number in signals:
        signal.signal(number, interrupted)
    ours = not demo.directory.exists()
    kept = False
    try:
        demo.start()
        steps(demo)
        if arguments.keep:
            kept = True
            explain_kept(demo)
            return 0
        claim(demo.stop_daemon() == 0, "penstockd did not end with exit 0")
        claim(not demo.pin.exists(), f"{demo.pin} is still there")
        demo.stop()
        left = demo.leftovers()
        claim(not left, f"left behind: {', '.join(left)}")
        show("end", "SIGTERM, exit 0; no process, namespace, pin, mount or file is left")
        print("quickstart: every step was observed")
        return 0
    except (Failed, OSError) as failure:
        print(f"FAIL {failure}", file=sys.stderr)
        log = demo.directory / "penstockd.log"
        if ours and log.exists():
            print("---- penstockd said ----\n" + log.read_text(errors="replace"), file=sys.stderr)
        return 1
    finally:
        if ours and not kept:
            demo.stop()


if __name__ == "__main__":
    sys.exit(main())
