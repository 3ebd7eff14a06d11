# SPDX-License-Identifier: Apache-2.0
"""What really waits in the kernel for each target of a daemon: tests/bpf/backlog_oracle.bpf.c over the daemon's own sockmap
`targets`, independent of what penstock's programs think."""
import ctypes
import os
import struct

from stage import Failed

EVERY_FIELD = struct.Struct("=5Q")  # `found` in the oracle


class RunOptions(ctypes.Structure):  # struct bpf_test_run_opts, bpf/bpf.h
    _fields_ = [("size", ctypes.c_size_t), ("data_in", ctypes.c_char_p), ("data_out", ctypes.c_void_p),
                ("data_size_in", ctypes.c_uint32), ("data_size_out", ctypes.c_uint32), ("ctx_in", ctypes.c_void_p),
                ("ctx_out", ctypes.c_void_p), ("ctx_size_in", ctypes.c_uint32), ("ctx_size_out", ctypes.c_uint32),
                ("retval", ctypes.c_uint32), ("repeat", ctypes.c_int), ("duration", ctypes.c_uint32),
                ("flags", ctypes.c_uint32), ("cpu", ctypes.c_uint32), ("batch_size", ctypes.c_uint32)]


class Backlog:
    def __init__(self, stage, daemon):
        self.libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name in ("bpf_object__open_file", "bpf_object__find_map_by_name", "bpf_object__find_program_by_name"):
            getattr(self.libbpf, name).restype = ctypes.c_void_p
        path = str(stage.program("tests/bpf/backlog_oracle.bpf.o")).encode()
        self.object = ctypes.c_void_p(self._checked(self.libbpf.bpf_object__open_file(path, None), "open the oracle"))
        watched = ctypes.c_void_p(self.libbpf.bpf_object__find_map_by_name(self.object, b"watched"))
        targets = self._checked(self.libbpf.bpf_map_get_fd_by_id(daemon.map_id("targets")), "the map targets")
        self._checked(self.libbpf.bpf_map__reuse_fd(watched, targets), "look at the map targets")
        os.close(targets)
        self._checked(self.libbpf.bpf_object__load(self.object), "load the oracle")
        program = ctypes.c_void_p(self.libbpf.bpf_object__find_program_by_name(self.object, b"measure"))
        self.program = self.libbpf.bpf_program__fd(program)
        found = ctypes.c_void_p(self.libbpf.bpf_object__find_map_by_name(self.object, b".bss"))
        self.found = self.libbpf.bpf_map__fd(found)

    @staticmethod
    def _checked(result, what):
        if result is None or result < 0:
            raise Failed(f"{what}: {os.strerror(ctypes.get_errno())}")
        return result

    def held_bytes(self, index):
        """Kernel memory behind what waits for that socket; None while it changes: the walk takes no lock."""
        once, again = self._walk(index), self._walk(index)
        if once != again:
            return None
        _segments, _bytes, truesize, linear, _first = once
        return max(truesize, linear)

    def _walk(self, index):
        packet = struct.pack("=I60x", index)
        options = RunOptions(size=ctypes.sizeof(RunOptions), data_in=packet, data_size_in=len(packet))
        self._checked(self.libbpf.bpf_prog_test_run_opts(self.program, ctypes.byref(options)), "run the oracle")
        key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(EVERY_FIELD.size)
        self._checked(self.libbpf.bpf_map_lookup_elem(self.found, ctypes.byref(key), value), "read what it found")
        return EVERY_FIELD.unpack(value.raw)

    def close(self):
        self.libbpf.bpf_object__close(self.object)
