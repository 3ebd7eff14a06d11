# SPDX-License-Identifier: Apache-2.0
"""Kernels out of the archives of Debian and Ubuntu. apt fetches them, with directories of its own below ours: it checks
the archive's signature, the list's hash and the package's, and the machine's own apt knows nothing of it."""
import pathlib
import re
import shutil
import subprocess
import tempfile
import urllib.request

DEBIAN, DEBIAN_SECURITY = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
DEBIAN_KEYS = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")
UBUNTU = "http://archive.ubuntu.com/ubuntu"
# Mirrors have the package. Of what comes from there only what this key of it has signed is believed.
UBUNTU_KEYS = UBUNTU + "/pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb"
UBUNTU_KEY = "F6ECB3762474EDA9D21B7022871920D1991BC93C"  # Ubuntu Archive Automatic Signing Key (2018)


def debian(suite, package="linux-image-amd64", security=None):
    sources = [f"{DEBIAN} {suite}"] + ([f"{DEBIAN_SECURITY} {security}"] if security else [])
    return (DEBIAN_KEYS, sources, package)


def ubuntu(suite, package):
    return (UBUNTU_KEY, [f"{UBUNTU} {suite}"], package)


# By what people call it. A package that only names the newest of a series is followed to it.
KERNELS = {
    "debian-11": debian("bullseye", security="bullseye-security"),
    "debian-12": debian("bookworm", security="bookworm-security"),
    "debian-12-backports": debian("bookworm-backports"),
    "debian-13": debian("trixie", security="trixie-security"),
    "debian-13-backports": debian("trixie-backports"),
    "debian-sid": debian("sid"),
    "ubuntu-22.04": ubuntu("jammy-updates", "linux-image-generic"),
    "ubuntu-22.04-6.5": ubuntu("jammy-updates", "linux-image-6.5.0-45-generic"),
    "ubuntu-24.04-first": ubuntu("noble", "linux-image-6.8.0-31-generic"),
    "ubuntu-24.04-2024": ubuntu("noble-updates", "linux-image-6.11.0-17-generic"),
    "ubuntu-24.04": ubuntu("noble-updates", "linux-image-generic"),
    "ubuntu-24.04-hwe": ubuntu("noble-updates", "linux-image-generic-hwe-24.04"),
}
# What the guest needs of a package that fills 400 MB.
PARTS = ("boot/vmlinuz-*", "lib/modules/*/vmlinuz", "lib/modules/*/modules.*",
         *(f"lib/modules/*/kernel/{part}/*" for part in (
             "arch", "crypto", "lib", "net", "fs/9p", "fs/fscache", "fs/netfs", "fs/overlayfs",
             "drivers/virtio")),
         *(f"lib/modules/*/kernel/drivers/net/{device}.ko*" for device in ("dummy", "tun", "veth")))


class Unavailable(Exception):
    """The archive cannot be reached, does not have it, or is not what it claims to be."""


class Kernel:
    """Unpacked: image, and modules as depmod left them."""

    def __init__(self, directory):
        [self.modules] = directory.glob("lib/modules/*")
        self.release = self.modules.name
        self.image = self.modules / "vmlinuz"


def get(name, cache):
    """The newest of `name` in its archive; what is already in `cache` is not fetched again."""
    keys, sources, package = KERNELS[name]
    apt = Apt(cache / name / "apt", keys, sources)
    image = apt.follow(package)
    directory = cache / name / image
    if not directory.exists():
        unpack(apt.download([image, *apt.parts_of(image)]), directory)
    return Kernel(directory)


def ubuntu_keys():
    try:
        with urllib.request.urlopen(UBUNTU_KEYS, timeout=30) as answer:
            package = answer.read()
    except OSError as error:
        raise Unavailable(f"{UBUNTU_KEYS}: {error}") from None
    with tempfile.NamedTemporaryFile() as file:
        file.write(package)
        file.flush()
        tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", file.name], capture_output=True, check=False).stdout
    keys = subprocess.run(["tar", "-xO", "./usr/share/keyrings/ubuntu-archive-keyring.gpg"], input=tar,
                          capture_output=True, check=False).stdout
    if not keys:
        raise Unavailable(f"{UBUNTU_KEYS} has no keys")
    return keys


class Apt:
    def __init__(self, directory, keys, sources):
        for part in ("lists/partial", "archives/partial", "apt.conf.d", "preferences.d", "trusted.gpg.d"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        self.directory = directory
        if keys == UBUNTU_KEY and not (kept := directory / "trusted.gpg.d/ubuntu.gpg").exists():
            kept.write_bytes(ubuntu_keys())
        (directory / "sources.list").write_text(
            "".join(f"deb [signed-by={keys}] {source} main\n" for source in sources))
        (directory / "status").touch()
        self.config = directory / "apt.conf"
        self.config.write_text(
            f'Dir::Etc "{directory}"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::trusted "/dev/null";\n'
            f'Dir::Etc::trustedparts "{directory}/trusted.gpg.d"; Dir::State "{directory}";\n'
            f'Dir::State::status "{directory}/status"; Dir::Cache "{directory}"; APT::Architecture "amd64";\n'
            'APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::GzipIndexes "true";\n'
            'Acquire::Retries "2"; Acquire::http::Timeout "30";\n'
            'Acquire::Check-Valid-Until "false";\n')  # a mirror may lag; an old kernel does no harm in a guest
        self.run("apt-get", "update", "--error-on=any")

    def run(self, program, *words):
        done = subprocess.run([program, "-q", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False, cwd=self.directory,
                              env={"APT_CONFIG": str(self.config), "PATH": "/usr/bin:/bin"})
        if done.returncode != 0:
            raise Unavailable(f"{program} {' '.join(words)}: {done.stdout.strip()[-500:]}")
        return done.stdout

    def depends(self, package, pattern):
        line = re.search(r"^Depends:(.*)$", self.run("apt-cache", "show", "--no-all-versions", package), re.M)
        return re.findall(rf"\b{pattern}(?=[\s,]|$)", line.group(1) if line else "")

    def follow(self, package):
        while depends := self.depends(package, r"linux-image-[^\s,]+"):
            package = depends[0]
        return package

    def parts_of(self, image):
        """Debian since 14, and Ubuntu, have the image or the modules in packages of their own."""
        release = re.escape(image.removeprefix("linux-image-"))
        return self.depends(image, rf"linux-(?:binary|modules)-{release}")

    def download(self, packages):
        for old in self.directory.glob("*.deb"):
            old.unlink()
        self.run("apt-get", "download", *packages)
        return sorted(self.directory.glob("*.deb"))


def unpack(packages, directory):
    whole = directory.with_name(directory.name + ".unpacking")
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    for package in packages:
        files = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
        # The image lies with the modules, as some packages have it. tar complains of each pattern that this package has
        # nothing of; what is missing shows below.
        subprocess.run(["tar", "-x", "-C", whole, "--wildcards", "--no-same-owner", "--transform", "s,^\\./usr/,./,",
                        "--transform", "s,^\\./boot/vmlinuz-\\(.*\\),./lib/modules/\\1/vmlinuz,",
                        *(f"*{part}" for part in PARTS)],
                       stdin=files.stdout, stderr=subprocess.DEVNULL, check=False)
        files.stdout.close()
        if files.wait() != 0:
            raise Unavailable(f"{package.name}: dpkg-deb cannot read it")
        package.unlink()
    if len(list(whole.glob("lib/modules/*/vmlinuz"))) != 1:
        raise Unavailable(f"no image in {', '.join(package.name for package in packages)}")
    subprocess.run(["depmod", "-b", whole, Kernel(whole).release], stderr=subprocess.DEVNULL, check=True)
    whole.rename(directory)
