// SPDX-License-Identifier: Apache-2.0
// bench/load/serve.h: the server behind the proxies. Runs until it is killed.
#pragma once
#include "base/endpoint.h"

namespace penstock::bench {

struct ServeOptions {
  Endpoint streams;  // long flows: each says in a Request what it wants
  Endpoint shorts;   // a question, an answer
  Endpoint proxied;  // the same after a PROXY header
  unsigned threads = 1;
};

// Prints "ready" when it listens. Exits with 1 where it cannot.
void serve(const ServeOptions& options);

}  // namespace penstock::bench
