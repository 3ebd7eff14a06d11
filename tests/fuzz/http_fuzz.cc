// SPDX-License-Identifier: Apache-2.0
// Any bytes to the metrics endpoint: one answer that HTTP/1.1 allows, as soon as the request is whole and
// whatever follows it, and no path that is not one.
#include "daemon/http.h"

#include <string>

#include "support/fuzz_text.h"

namespace {

using namespace penstock::daemon;
constexpr std::string_view kBody = "penstock_up 1\n";

Page page(const std::string& path) {
  for (const char c : path) PENSTOCK_ASSERT(static_cast<unsigned char>(c) > ' ' && c != 0x7f && c != '?');
  if (path == "/metrics") return {200, "text/plain; version=0.0.4", std::string(kBody)};
  return {};
}

// Status line, header fields and the length they announce. `head`: the request was a HEAD.
void check_response(std::string_view response, bool head) {
  const size_t end = response.find("\r\n\r\n");
  PENSTOCK_ASSERT(response.starts_with("HTTP/1.1 ") && end != response.npos);
  const std::string_view fields = response.substr(0, end + 2), body = response.substr(end + 4);
  PENSTOCK_ASSERT(fields.find("\r\nConnection: close\r\n") != fields.npos);
  for (const char c : fields) PENSTOCK_ASSERT((c >= ' ' && c <= '~') || c == '\r' || c == '\n');
  const int status = std::stoi(std::string(response.substr(9, 3)));
  PENSTOCK_ASSERT(status == 200 || status == 400 || status == 404 || status == 405 || status == 431);
  constexpr std::string_view kLength = "\r\nContent-Length: ";
  const size_t at = fields.find(kLength);
  const size_t length =
      at == fields.npos ? 0 : std::stoul(std::string(fields.substr(at + kLength.size(), 9)));
  PENSTOCK_ASSERT(head ? body.empty() : body.size() == length);
  if (status == 200 && !head) PENSTOCK_ASSERT(body == kBody);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const auto at_once = http_response(all, page);
  PENSTOCK_ASSERT(at_once || size <= kHttpRequestBytesMax);
  if (at_once) check_response(*at_once, all.starts_with("HEAD "));
  const size_t blank = all.find("\r\n\r\n");
  const size_t whole = std::min(blank == all.npos ? all.npos : blank + 4, kHttpRequestBytesMax + 1);
  PENSTOCK_ASSERT(at_once.has_value() == (size >= whole));
  if (!at_once) return 0;
  PENSTOCK_ASSERT(!http_response(all.substr(0, whole - 1), page));
  PENSTOCK_ASSERT(http_response(all.substr(0, whole), page) == at_once);
  return 0;
}
