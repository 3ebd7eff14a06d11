// SPDX-License-Identifier: Apache-2.0
// daemon/http.h: GET and HEAD over HTTP/1.1, one request a connection. One thread of its own. Boost.Beast
// reads requests and writes answers; sockets and their bounds are ours. A slow, silent or malicious client
// delays nobody but itself. What the pages say is not known here. tests/netns/http_test.cc keeps it true.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "config/config.h"

namespace penstock::daemon {

inline constexpr size_t kHttpRequestBytesMax = 8 << 10;  // request line and headers; a body is never read
inline constexpr size_t kHttpConnectionsMax = 64;        // one more, and the oldest is closed
inline constexpr std::chrono::seconds kHttpTimeout{5};   // of a connection, from accept to its end
inline constexpr std::chrono::seconds kHttpBindAgain{2};

struct Page {
  int status = 404;
  std::string type = "text/plain; charset=utf-8";
  std::string body = "not found\n";
};

using HttpAnswer = std::function<Page(const std::string& path)>;

// What to say to a connection that has said `bytes` so far; nothing while its request is not whole. A body is
// not looked at. Pure but for `answer`. Kept true by tests/fuzz/http_fuzz.cc.
std::optional<std::string> http_response(std::string_view bytes, const HttpAnswer& answer);

class Http {
 public:
  using Answer = HttpAnswer;  // on the thread of Http

  // Binds at once, with the privileges of the caller. An address that cannot be had is a warning and tried
  // again until it can: traffic comes first.
  Http(const config::Bind& where, Answer answer);
  ~Http();  // closes every connection, joins the thread

  struct State {
    bool listening = false;
    std::string reason;  // why not
  };
  State state() const;  // thread-safe

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::daemon
