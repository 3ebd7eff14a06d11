# SPDX-License-Identifier: Apache-2.0
"""The same three listeners in the words of penstock, HAProxy and nginx: streams and shorts, a server behind each, and one
that routes by server name and sends the PROXY header. A site is what these words leave open, by name: `edge` and `server`
addresses, the servers' ports `to`, `domain`, `threads`, `flows` and `files` at most."""
import re
import shutil
import subprocess

from stage import Unfit, run

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
HAPROXY = """\
global
  nbthread {threads}
  maxconn {flows}
  maxpipes 256
{more}defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend streams
  bind {edge}:{0}
  default_backend streams-servers
frontend shorts
  bind {edge}:{1}
  default_backend shorts-servers
frontend sni
  bind {edge}:{2}
  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  use_backend proxied-servers if {{ req.ssl_sni -m end .{domain} }}
backend streams-servers
  server server {server}:{to[0]}
backend shorts-servers
  server server {server}:{to[1]}
backend proxied-servers
  server server {server}:{to[2]} send-proxy-v2
"""
NGINX = """\
{module}worker_processes {threads};
worker_rlimit_nofile {files};
daemon {daemon};
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections {files}; }}
stream {{
  proxy_timeout 1h;
  map $ssl_preread_server_name $routed {{ hostnames; *.{domain} {server}:{to[2]}; }}
  server {{ listen {edge}:{0}; proxy_pass {server}:{to[0]}; }}
  server {{ listen {edge}:{1}; proxy_pass {server}:{to[1]}; }}
  server {{ listen {edge}:{2}; ssl_preread on; proxy_pass $routed; proxy_protocol on; }}
}}
"""
PENSTOCK = """\
[upstream.streams]
servers = ["{server}:{to[0]}"]
[upstream.shorts]
servers = ["{server}:{to[1]}"]
[upstream.proxied]
servers = ["{server}:{to[2]}"]
proxy_protocol = "v2"
[[listener]]
name = "streams"
bind = ["{edge}:{0}"]
upstream = "streams"
[[listener]]
name = "shorts"
bind = ["{edge}:{1}"]
upstream = "shorts"
[[listener]]
name = "sni"
bind = ["{edge}:{2}"]
upstream = "shorts"
  [[listener.route]]
  sni = ["*.{domain}"]
  upstream = "proxied"
"""


def haproxy(program, file, ports, site, more=""):
    """Writes the file, with `more` in the section global. (version, configuration)."""
    configuration = HAPROXY.format(*ports, more=more, **site)
    file.write_text(configuration)
    return run(program, "-v").split(" - ")[0].splitlines()[0], configuration


def nginx(program, file, ports, site, daemon="off"):
    """Writes the file; nginx.pid will stand beside it. (version, configuration)."""
    module = "/usr/lib/nginx/modules/ngx_stream_module.so"
    built = subprocess.run([program, "-V"], stderr=subprocess.PIPE, text=True, check=True).stderr
    loads_module = re.search(r"--with-stream(?![=_a-z])(?!=dynamic)", built) is None
    configuration = NGINX.format(*ports, module=f"load_module {module};\n" if loads_module else "", daemon=daemon,
                                 directory=file.parent, **site)
    file.write_text(configuration)
    return built.splitlines()[0], configuration


def of_path(program):
    found = shutil.which(program, path=PATH)
    if not found:
        raise Unfit(f"needs {program} (tools/install-deps test)")
    return found
