// SPDX-License-Identifier: Apache-2.0
// crash/backtrace.h: addresses as module+0xoffset, which `addr2line -Cfe MODULE 0xoffset` turns into a
// function and a line. No symbols here: our own are not in .dynsym, where dladdr(3) looks, and it takes the
// loader's lock.
#pragma once
#include <ucontext.h>

#include <string_view>

#include "crash/text.h"

namespace penstock::crash {

// Once, before any thread: remembers what is loaded and makes the unwinder load what it needs. A module that
// is loaded later is shown by its bare address.
void prepare_backtrace();

std::string_view build_id();  // GNU build id of this program in hex, "none" before prepare_backtrace()

// In a signal handler. Of a frame above the first the address is within its call, one byte before where it
// returns to. The unwinder itself may crash on a broken stack.
void put_backtrace(Text& out, const ucontext_t& context);
void put_registers(Text& out, const ucontext_t& context);

}  // namespace penstock::crash
