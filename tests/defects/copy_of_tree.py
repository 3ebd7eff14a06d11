# SPDX-License-Identifier: Apache-2.0
"""A copy of the tracked files, into which a defect is planted and out of which penstockd is built."""
import os
import pathlib
import re
import shutil
import subprocess

from stage import Failed, run

PLANTED_IN = re.compile(r"(bpf|userspace)/")


class Stale(Exception):
    """A patch no longer fits the tree."""


class Patch:
    """First a paragraph: what is wrong and what a user sees; then the diff. A last sentence ORDERS there: meanwhile lanes
    are ordered by command."""
    ORDERS = "Lanes are ordered meanwhile."

    def __init__(self, path):
        self.path, self.name = path, path.stem
        self.text = path.read_text()
        self.about = " ".join(self.text.partition("\n\n")[0].split())
        self.orders = self.about.endswith(self.ORDERS)
        self.files = re.findall(r"^\+\+\+ b/(\S+)", self.text, re.M)

    def fault(self):
        if not self.about or self.about.startswith("---"):
            return "does not begin with what is wrong and what a user sees"
        if not self.files or not all(PLANTED_IN.match(file) for file in self.files):
            return "changes something that is neither bpf/ nor userspace/"
        return ""


class Copy:
    def __init__(self, root, directory):
        self.root, self.directory = root, directory.resolve()
        self.build_directory = self.directory / "build/release"

    def restore(self):
        """The tree as it is, without a defect. What has not changed keeps its time, and is not compiled again."""
        for name in filter(None, run("git", "-C", self.root, "-c", "safe.directory=*", "ls-files", "-z").split("\0")):
            source, target = self.root / name, self.directory / name
            if not source.is_file():
                continue
            if not target.is_file() or target.read_bytes() != source.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)

    def refuses(self, patch):
        """Why the patch does not apply; empty when it does."""
        # Within a repository git apply would pass over, without a word, what lies outside its working directory.
        done = subprocess.run(["git", "apply", "--check", patch.path], cwd=self.directory, text=True, check=False,
                              capture_output=True, env=self._alone())
        return done.stderr.strip()

    def apply(self, patch):
        if why := patch.fault() or self.refuses(patch):
            raise Stale(f"{patch.name}: {why}")
        before = {file: (self.directory / file).read_bytes() for file in patch.files}
        subprocess.run(["git", "apply", patch.path], cwd=self.directory, check=True, env=self._alone())
        for file, bytes_before in before.items():
            if (self.directory / file).read_bytes() == bytes_before:
                raise Stale(f"{patch.name}: {file} is as it was")

    def build(self, *targets):
        if not (self.build_directory / "build.ninja").exists():
            launcher = ("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache", "-DCMAKE_C_COMPILER_LAUNCHER=ccache")
            run("cmake", "-S", self.directory, "-B", self.build_directory, "-G", "Ninja", "-DPENSTOCK_PRESET=release",
                "-DBUILD_TESTING=OFF", *(launcher if shutil.which("ccache") else ()))
        try:
            run("ninja", "-C", self.build_directory, *targets)
        except Failed as failed:
            raise Failed(str(failed)[-3000:]) from None

    def _alone(self):
        return {**os.environ, "GIT_CEILING_DIRECTORIES": str(self.directory.parent)}
