// SPDX-License-Identifier: Apache-2.0
// io/twins.h: the two kinds of Io by name, for Io::open(), `penstock probe` and the tests that compare them.
#pragma once
#include "io/io.h"

namespace penstock::io {

// Sets the ring up and tries each kind of operation on it. The error says what was refused.
Result<std::unique_ptr<Io>> open_io_uring(unsigned entries);
// `refusal`: why it is not io_uring.
Result<std::unique_ptr<Io>> open_epoll(const std::string& refusal);

}  // namespace penstock::io
