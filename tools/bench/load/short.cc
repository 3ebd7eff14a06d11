// SPDX-License-Identifier: Apache-2.0
#include "short.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>

namespace penstock::bench {
namespace {

constexpr size_t kReadBytes = 4096;
constexpr size_t kHelloBytes = 512;  // of the handshake message, by padding
constexpr char kSignatureV2[] = "\r\n\r\n\0\r\nQUIT\n";
constexpr size_t kSignatureBytes = sizeof kSignatureV2 - 1;
const std::string kAnswer(kAnswerBytes, '\0');

uint32_t be16(const std::string& bytes, size_t at) {
  return static_cast<uint8_t>(bytes[at]) << 8 | static_cast<uint8_t>(bytes[at + 1]);
}

// 0: not whole yet, or none
size_t proxy_header_bytes(const std::string& bytes) {
  if (bytes.starts_with("PROXY ")) {
    const size_t end = bytes.find("\r\n");
    return end == std::string::npos ? 0 : end + 2;
  }
  if (bytes.size() < kSignatureBytes + 4 || !bytes.starts_with({kSignatureV2, kSignatureBytes})) return 0;
  const size_t whole = kSignatureBytes + 4 + be16(bytes, kSignatureBytes + 2);
  return bytes.size() >= whole ? whole : 0;
}

std::string with_length(int length_bytes, const std::string& body) {
  std::string out;
  for (int i = length_bytes - 1; i >= 0; --i) out += static_cast<char>(body.size() >> (8 * i));
  return out + body;
}

std::string extension(uint16_t type, const std::string& body) {
  return std::string{static_cast<char>(type >> 8), static_cast<char>(type)} + with_length(2, body);
}

}  // namespace

std::string client_hello(const std::string& name) {
  const std::string server_name = extension(0, with_length(2, '\0' + with_length(2, name)));
  const std::string versions = extension(43, with_length(1, "\x03\x04"));
  std::string body = "\x03\x03" + std::string(32, 'r') + with_length(1, std::string(32, 's')) +
                     with_length(2, std::string("\x13\x01", 2)) + with_length(1, std::string(1, '\0'));
  const size_t without_padding = body.size() + 2 + server_name.size() + versions.size() + 4;
  const std::string padding = extension(21, std::string(kHelloBytes - without_padding, '\0'));
  body += with_length(2, server_name + versions + padding);
  return std::string("\x16\x03\x01", 3) + with_length(2, '\x01' + with_length(3, body));
}

bool Answerer::question_is_whole() const {
  const size_t header = proxied_ ? proxy_header_bytes(read_) : 0;
  if (proxied_ && header == 0) return false;
  const size_t question = read_.size() - header;
  const bool tls = question >= 5 && read_[header] == '\x16';
  return question >= (tls ? 5 + be16(read_, header + 3) : kQuestionBytes);
}

void Answerer::on_ready(uint32_t) {
  char bytes[kReadBytes];
  const ssize_t n = recv(socket_.get(), bytes, sizeof bytes, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    delete this;
    return;
  }
  read_.append(bytes, static_cast<size_t>(n));
  if (answered_ || !question_is_whole()) return;
  answered_ = true;
  send(socket_.get(), kAnswer.data(), kAnswer.size(), MSG_NOSIGNAL);
}

void Asker::connect() {
  sockaddr_storage address{};
  const socklen_t length = to_.to_sockaddr(&address);
  began_ns_ = now_ns();
  asked_ = false;
  answer_bytes_ = 0;
  socket_ = Fd(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  set_options(socket_.get());
  ::connect(socket_.get(), reinterpret_cast<sockaddr*>(&address),
            length);  // its end, good or bad, is an event
  loop_.add(socket_.get(), EPOLLOUT, this);
}

void Asker::on_ready(uint32_t events) {
  if (!asked_ && !(events & (EPOLLERR | EPOLLHUP))) {
    asked_ = true;
    send(socket_.get(), question_.data(), question_.size(), MSG_NOSIGNAL);
    loop_.change(socket_.get(), EPOLLIN, this);
    return;
  }
  const ssize_t n = recv(socket_.get(), nullptr, kAnswerBytes - answer_bytes_, MSG_TRUNC);
  if (n < 0 && errno == EAGAIN) return;
  answer_bytes_ += n > 0 ? static_cast<uint32_t>(n) : 0;
  if (n > 0 && answer_bytes_ < kAnswerBytes) return;
  socket_.reset();
  if (answer_bytes_ == kAnswerBytes)
    loop_.count_latency(began_ns_);
  else
    loop_.ended.fetch_add(1, std::memory_order_relaxed);
  connect();
}

}  // namespace penstock::bench
