// SPDX-License-Identifier: Apache-2.0
// keeper/scene.h: the descriptors that a test leaves for scene.cc, which needs only the first.
#pragma once

namespace penstock::keeper::test {

// What comes in on kPipeIn goes out on kPipeOut; from kTcpIn through a pipe of its own to kTcpOut.
enum { kCommands = 99, kPipeIn, kPipeOut, kTcpIn, kTcpOut, kBetweenIn, kBetweenOut, kLast = kBetweenOut };

}  // namespace penstock::keeper::test
