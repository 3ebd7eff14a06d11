#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The configurations that the README shows of HAProxy and nginx are ones that HAProxy and nginx accept."""
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ["PATH"] += ":/usr/sbin:/sbin"


def block(language):
    return re.search(f"^```{language}\n(.*?)^```$", open(os.path.join(ROOT, "README.md")).read(), re.M | re.S)[1]


def accepts(text, *command):
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "conf")
        with open(path, "w") as file:
            file.write(text.replace("@DIRECTORY@", directory))
        done = subprocess.run([*command, path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(f"{command[0]} refuses the README's configuration:\n{done.stdout}")
    return done.returncode == 0


nginx = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\npid @DIRECTORY@/pid;\nevents {}\n" + block("nginx")
good = [accepts(block("haproxy"), "haproxy", "-c", "-f"),
        accepts(nginx, "nginx", "-t", "-e", "stderr", "-c")]
sys.exit(0 if all(good) else 1)
