// SPDX-License-Identifier: Apache-2.0
#include "crash/backtrace.h"

#include <elf.h>
#include <execinfo.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <span>

namespace penstock::crash {
namespace {

constexpr size_t kFramesMax = 64, kModulesMax = 64, kNameBytes = 48;
constexpr size_t kFramesOfOurs = 8;  // handler and signal frame, above the one that crashed

struct Module {
  uintptr_t base, begin, end;  // addresses in the file count from `base`
  char name[kNameBytes];
};
Module g_modules[kModulesMax];
size_t g_modules_count = 0;
char g_build_id[2 * 32 + 1] = "none";

void remember_build_id(const char* note, size_t size) {
  while (size >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) head;
    memcpy(&head, note, sizeof head);
    const size_t name = sizeof head, id = name + (head.n_namesz + 3) / 4 * 4,
                 end = id + (head.n_descsz + 3) / 4 * 4;
    if (end > size) return;
    if (head.n_type == NT_GNU_BUILD_ID && head.n_namesz == 4 && memcmp(note + name, "GNU", 4) == 0) {
      size_t at = 0;
      for (size_t i = 0; i < head.n_descsz && at + 2 < sizeof g_build_id; i++) {
        const auto byte = static_cast<unsigned char>(note[id + i]);
        g_build_id[at++] = "0123456789abcdef"[byte / 16];
        g_build_id[at++] = "0123456789abcdef"[byte % 16];
      }
      g_build_id[at] = 0;
      return;
    }
    note += end;
    size -= end;
  }
}

int remember_module(dl_phdr_info* info, size_t, void*) {
  const bool program = g_modules_count == 0;  // comes first
  Module m{info->dlpi_addr, UINTPTR_MAX, 0, {}};
  for (size_t i = 0; i < info->dlpi_phnum; i++) {
    const auto& segment = info->dlpi_phdr[i];
    const uintptr_t at = info->dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_NOTE && program)
      remember_build_id(reinterpret_cast<const char*>(at), segment.p_memsz);
    if (segment.p_type != PT_LOAD || !(segment.p_flags & PF_X)) continue;
    m.begin = std::min(m.begin, at);
    m.end = std::max(m.end, at + segment.p_memsz);
  }
  char path[PATH_MAX] = "";
  if (program && readlink("/proc/self/exe", path, sizeof path - 1) < 0) path[0] = 0;
  const char* name = program ? path : info->dlpi_name;
  if (const char* slash = strrchr(name, '/')) name = slash + 1;
  std::string_view(name).copy(m.name, kNameBytes - 1);
  g_modules[g_modules_count++] = m;
  return g_modules_count == kModulesMax;
}

void put_address(Text& out, uintptr_t address) {
  for (const Module& m : std::span(g_modules, g_modules_count)) {
    if (address < m.begin || address >= m.end) continue;
    out.printable(m.name, kNameBytes) << "+";
    out.hex(address - m.base) << "\n";
    return;
  }
  out.hex(address) << "\n";
}

uintptr_t program_counter([[maybe_unused]] const ucontext_t& context) {
#if defined(__x86_64__)
  return static_cast<uintptr_t>(context.uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
  return context.uc_mcontext.pc;
#else
  return 0;
#endif
}

}  // namespace

void prepare_backtrace() {
  g_modules_count = 0;
  dl_iterate_phdr(remember_module, nullptr);
  void* frame;
  backtrace(&frame, 1);  // loads libgcc_s, which allocates
}

std::string_view build_id() {
  return g_build_id;
}

void put_backtrace(Text& out, const ucontext_t& context) {
  void* frames[kFramesOfOurs + kFramesMax];
  const auto count = static_cast<size_t>(backtrace(frames, std::size(frames)));
  const uintptr_t crashed = program_counter(context);
  const auto address = [&](size_t i) { return reinterpret_cast<uintptr_t>(frames[i]); };
  size_t first = 0;
  while (first < count && address(first) != crashed) first++;
  out << "  0 ";
  put_address(out, crashed);
  // A jump to nowhere has no frame that the unwinder knows: then what it knows is everything.
  const size_t next = first < count ? first + 1 : 0;
  for (size_t i = next; i < count && i - next + 1 < kFramesMax; i++) {
    out << "  " << static_cast<int64_t>(i - next + 1) << " ";
    put_address(out, address(i) - 1);
  }
}

void put_registers(Text& out, [[maybe_unused]] const ucontext_t& context) {
  auto put = [&](std::string_view name, uint64_t value) {
    out << "  " << name << " ";
    out.hex(value, 16) << "\n";
  };
#if defined(__x86_64__)
  constexpr struct {
    std::string_view name;
    int index;
  } kRegisters[] = {{"rip", REG_RIP}, {"rsp", REG_RSP}, {"rbp", REG_RBP}, {"rax", REG_RAX},
                    {"rbx", REG_RBX}, {"rcx", REG_RCX}, {"rdx", REG_RDX}, {"rsi", REG_RSI},
                    {"rdi", REG_RDI}, {"r8 ", REG_R8},  {"r9 ", REG_R9},  {"r10", REG_R10},
                    {"r11", REG_R11}, {"r12", REG_R12}, {"r13", REG_R13}, {"r14", REG_R14},
                    {"r15", REG_R15}, {"efl", REG_EFL}, {"err", REG_ERR}, {"trap", REG_TRAPNO}};
  for (const auto& r : kRegisters) put(r.name, static_cast<uint64_t>(context.uc_mcontext.gregs[r.index]));
#elif defined(__aarch64__)
  put("pc", context.uc_mcontext.pc);
  put("sp", context.uc_mcontext.sp);
  for (int i = 30; i >= 0; i--) {
    const char name[] = {'x', static_cast<char>('0' + i / 10), static_cast<char>('0' + i % 10)};
    put({name, sizeof name}, context.uc_mcontext.regs[i]);
  }
#endif
}

}  // namespace penstock::crash
