# SPDX-License-Identifier: Apache-2.0
"""How many entries a process's BPF maps have, from the outside: those whose number changes, hashes and sockmaps."""
import ctypes
import os
import pathlib

BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_SOCKMAP = 1, 15  # linux/bpf.h

_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)


class MapInfo(ctypes.Structure):  # the beginning of struct bpf_map_info
    _fields_ = [("type", ctypes.c_uint32), ("id", ctypes.c_uint32), ("key_size", ctypes.c_uint32),
                ("value_size", ctypes.c_uint32), ("max_entries", ctypes.c_uint32), ("flags", ctypes.c_uint32),
                ("name", ctypes.c_char * 16)]


def entries(pid):
    """By the map's name."""
    ids = set()
    for fdinfo in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            ids |= {int(line[7:]) for line in fdinfo.read_text().splitlines() if line.startswith("map_id:")}
        except FileNotFoundError:  # closed meanwhile
            continue
    found = {}
    for number in ids:
        fd = _libbpf.bpf_map_get_fd_by_id(number)
        if fd < 0:
            continue
        info, length = MapInfo(), ctypes.c_uint32(ctypes.sizeof(MapInfo))
        _libbpf.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(length))
        if info.type in (BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_SOCKMAP):
            found[info.name.decode()] = _count(fd, info)
        os.close(fd)
    return found


def _count(fd, info):
    """A sockmap has a key for every index: one that is taken has a value, the socket's cookie."""
    before, key = None, ctypes.create_string_buffer(info.key_size)
    value = ctypes.create_string_buffer(info.value_size)
    count = 0
    while _libbpf.bpf_map_get_next_key(fd, before, key) == 0:
        count += _libbpf.bpf_map_lookup_elem(fd, key, value) == 0
        before = ctypes.create_string_buffer(key.raw, info.key_size)
    return count
