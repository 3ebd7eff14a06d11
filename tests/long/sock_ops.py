# SPDX-License-Identifier: Apache-2.0
"""Another's sock_ops program in a cgroup, beside penstockd's."""
import contextlib
import ctypes
import os
import struct

from stage import Failed

BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS, BPF_F_ALLOW_MULTI = 13, 3, 2  # linux/bpf.h
SOCK_OPS_CB_FLAGS_SET = 59  # BPF_FUNC_sock_ops_cb_flags_set
MOV64_IMM, CALL, EXIT = 0xb7, 0x85, 0x95

_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)


def program(flags):
    """Returns 1 whatever happens; with `flags`, sets them as the socket's callbacks first, whatever was set before."""
    def instruction(code, register, immediate):
        return struct.pack("=BBhi", code, register, 0, immediate)
    set_flags = instruction(MOV64_IMM, 2, flags) + instruction(CALL, 0, SOCK_OPS_CB_FLAGS_SET) if flags is not None else b""
    return set_flags + instruction(MOV64_IMM, 0, 1) + instruction(EXIT, 0, 0)


def checked(result, what):
    if result < 0:
        raise Failed(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


@contextlib.contextmanager
def attached(cgroup, flags=None):
    code = program(flags)
    prog = checked(_libbpf.bpf_prog_load(BPF_PROG_TYPE_SOCK_OPS, b"another", b"GPL", code, ctypes.c_size_t(len(code) // 8), None),
                   "load a sock_ops program")
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        checked(_libbpf.bpf_prog_attach(prog, directory, BPF_CGROUP_SOCK_OPS, BPF_F_ALLOW_MULTI), f"attach it to {cgroup}")
        yield
        _libbpf.bpf_prog_detach2(prog, directory, BPF_CGROUP_SOCK_OPS)  # the daemon's leaf may be gone by now
    finally:
        os.close(directory)
        os.close(prog)
