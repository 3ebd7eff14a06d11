// SPDX-License-Identifier: Apache-2.0
// base/assert.h: a condition whose failure is our own bug. On in release: a wrong flow table must not go on.
#pragma once
#include <cstdio>
#include <cstdlib>

#define PENSTOCK_ASSERT(condition)                                                           \
  do {                                                                                       \
    if (!(condition)) [[unlikely]] {                                                         \
      std::fprintf(stderr, "%s:%d: assertion failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                          \
    }                                                                                        \
  } while (0)
