// SPDX-License-Identifier: Apache-2.0
#include "end_run.h"

#include <fmt/format.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace penstock::torture {
namespace {

constexpr int kStepsPerTurn = 8;
constexpr size_t kReadMax = 128 << 10;
constexpr size_t kWriteMax = 1 << 20;
constexpr uint64_t kPaceTicksPerS = 100;

thread_local uint8_t read_buffer[kReadMax];

uint8_t tcp_state(int fd) {
  tcp_info info{};
  socklen_t length = sizeof info;
  getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
  return info.tcpi_state;
}

int pending_error(int fd) {
  int error = 0;
  socklen_t length = sizeof error;
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
  return error;
}

}  // namespace

template <typename... A>
void EndRun::trace(fmt::format_string<A...> format, A&&... a) {
  if (!life_.traced) return;
  const double ms = static_cast<double>(now_us() - life_.began_us) / 1000;
  fmt::print(stderr, "{:10.3f} ms  {}  {}\n", ms, name_of(side_), fmt::format(format, std::forward<A>(a)...));
}

EndRun::EndRun(Life& life, Side side, int fd)
    : life_(life),
      plan_(life.plan.end(side)),
      side_(side),
      fd_(fd),
      own_(life.plan.seed, side, plan_.opening),
      peers_(life.plan.seed, other(side), life.plan.end(other(side)).opening),
      dice_(life.plan.seed + 2 + index_of(side)),
      connected_(side == Side::server),
      readable_(connected_),
      writable_(connected_),
      now_ms_(now_ms()),
      began_ms_(now_ms_),
      send_bytes_(plan_.send_bytes) {
  report_.arrived = connected_;
  take_pauses();
  if (plan_.never_read) progress(now_ms_ + plan_.reset->at);
  trace("{}", connected_ ? "accepted" : "connecting");
}

void EndRun::progress(int64_t until_ms) {
  int64_t seen = life_.last_progress_ms.load(std::memory_order_relaxed);
  while (seen < until_ms &&
         !life_.last_progress_ms.compare_exchange_weak(seen, until_ms, std::memory_order_relaxed)) {
  }
}

bool EndRun::hangs(int64_t hang_ms) const {
  return life_.hung || now_ms() - life_.last_progress_ms.load() > hang_ms;
}

void EndRun::give_up() {
  life_.hung = true;
  over_ = true;
  trace("hangs");
}

uint64_t EndRun::take_received() {
  return std::exchange(untold_, 0);
}

void EndRun::take_early(std::string_view bytes) {
  if (bytes.empty()) return;
  check({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  pass_gates();
  take_pauses();
}

EndRun::After EndRun::on_events(uint32_t events) {
  constexpr uint32_t kBroken = EPOLLERR | EPOLLHUP;
  if (!connected_ && (events & kBroken)) {
    fail_with(pending_error(fd_));
    return After::over;
  }
  if (!connected_ && (events & EPOLLOUT)) {
    connected_ = true;
    began_ms_ = now_ms();
  }
  if (events & (EPOLLIN | EPOLLRDHUP | kBroken)) readable_ = true;
  if (events & (EPOLLOUT | kBroken)) writable_ = true;
  if (events & (EPOLLRDHUP | kBroken)) peer_shut_ = true;
  if (plan_.never_read && (events & kBroken)) fail_with(pending_error(fd_));
  return go_on();
}

EndRun::After EndRun::go_on() {
  now_ms_ = now_ms();
  for (int i = 0; i < kStepsPerTurn && !over_; ++i) {
    if (step()) continue;
    if (over_) break;
    set_wake();
    return After::wait;
  }
  return over_ ? After::over : After::again;
}

bool EndRun::step() {
  if (!connected_) return false;
  if (reset_is_due() && try_reset()) return true;
  if (send_bytes_ == kWithoutEnd && now_ms_ - began_ms_ >= plan_.send_for_ms) send_bytes_ = report_.sent;
  bool moved = false;
  if (readable_ && !report_.fin_seen && !plan_.never_read && now_ms_ >= read_from_ms_) moved = read_some();
  if (!over_ && writable_ && now_ms_ >= send_from_ms_) moved |= write_some();
  if (!over_) moved |= maybe_shut();
  if (complete()) {
    trace("closes");
    over_ = true;
  }
  if (moved) progress(now_ms_);
  return moved;
}

bool EndRun::complete() const {
  return report_.fin_seen && report_.fin_sent;
}

void EndRun::pass_gates() {
  while (gate_ < plan_.gates.size()) {
    const Gate& gate = plan_.gates[gate_];
    const bool open = gate.until == kUntilFin ? report_.fin_seen : report_.received >= gate.until;
    if (!open) return;
    ++gate_;
  }
}

void EndRun::take_pauses() {
  while (header_pause_ < plan_.header_pauses.size() &&
         plan_.header_pauses[header_pause_].at <= header_sent_) {
    send_from_ms_ = std::max(send_from_ms_, now_ms_) + plan_.header_pauses[header_pause_++].ms;
    progress(send_from_ms_);
  }
  while (send_pause_ < plan_.send_pauses.size() && plan_.send_pauses[send_pause_].at <= report_.sent) {
    send_from_ms_ = std::max(send_from_ms_, now_ms_) + plan_.send_pauses[send_pause_].ms;
    trace("writes no more for {} ms at {}", plan_.send_pauses[send_pause_++].ms, report_.sent);
    progress(send_from_ms_);
  }
  while (read_pause_ < plan_.read_pauses.size() && plan_.read_pauses[read_pause_].at <= report_.received) {
    read_from_ms_ = std::max(read_from_ms_, now_ms_) + plan_.read_pauses[read_pause_].ms;
    trace("reads no more for {} ms at {}", plan_.read_pauses[read_pause_++].ms, report_.received);
    progress(read_from_ms_);
    in_stall_ = true;
  }
}

uint64_t EndRun::paced_limit() const {
  if (plan_.pace_bytes_per_s == 0) return kWithoutEnd;
  const auto ticks = static_cast<uint64_t>(now_ms_ - began_ms_) * kPaceTicksPerS / 1000 + 1;
  return ticks * plan_.pace_bytes_per_s / kPaceTicksPerS;
}

uint64_t EndRun::send_limit() const {
  uint64_t limit = std::min(send_bytes_, paced_limit());
  if (gate_ < plan_.gates.size()) limit = std::min(limit, plan_.gates[gate_].at);
  if (send_pause_ < plan_.send_pauses.size()) limit = std::min(limit, plan_.send_pauses[send_pause_].at);
  if (plan_.reset && plan_.reset->when == Reset::When::sent) limit = std::min(limit, plan_.reset->at);
  return limit;
}

uint64_t EndRun::read_limit() const {
  uint64_t limit = plan_.read_bytes_max > 0 ? plan_.read_bytes_max : kReadMax;
  if (read_pause_ < plan_.read_pauses.size()) {
    limit = std::min(limit, plan_.read_pauses[read_pause_].at - report_.received);
  }
  return std::min<uint64_t>(limit, kReadMax);
}

size_t EndRun::draw_write_bytes(uint64_t most) {
  const uint64_t drawn = plan_.write_bytes_min == plan_.write_bytes_max
                             ? plan_.write_bytes_max
                             : dice_.log_uniform(plan_.write_bytes_min, plan_.write_bytes_max);
  return static_cast<size_t>(std::min({drawn, most, uint64_t{kWriteMax}}));
}

bool EndRun::read_some() {
  if (in_stall_) {
    const uint64_t peer_sent = life_.sent[index_of(other(side_))].load(std::memory_order_relaxed);
    stalled_bytes_ = peer_sent - std::min(peer_sent, report_.received);
    in_stall_ = false;
  }
  const size_t most = read_limit();
  const ssize_t n = recv(fd_, read_buffer, most, 0);
  if (n < 0) {
    if (errno != EAGAIN) fail_with(errno);
    readable_ = false;
    return false;
  }
  report_.arrived = true;
  if (n == 0) {
    trace("sees FIN at {}", report_.received);
    report_.fin_seen = true;
    readable_ = false;
    pass_gates();
    return true;
  }
  trace("read {} bytes at {}", n, report_.received);
  check({read_buffer, static_cast<size_t>(n)});
  if (static_cast<size_t>(n) < most && !peer_shut_) readable_ = false;
  if (plan_.read_gap_ms > 0) {
    read_from_ms_ = now_ms_ + plan_.read_gap_ms;
    progress(read_from_ms_);
  }
  pass_gates();
  take_pauses();
  return true;
}

void EndRun::check(std::span<const uint8_t> bytes) {
  const uint64_t promised = life_.plan.end(other(side_)).send_bytes;
  const uint64_t beyond =
      report_.received + bytes.size() - std::min(promised, report_.received + bytes.size());
  if (beyond > 0) {  // no byte of the stream stands there
    bytes = bytes.first(bytes.size() - beyond);
    report_.remark = fmt::format("{} bytes beyond the end", beyond);
    over_ = true;
  }
  const size_t right = peers_.count_right(report_.received, bytes);
  report_.received += right;
  untold_ += right;
  if (right == bytes.size()) {
    report_.received += beyond;
    return;
  }
  report_.wrong_at = report_.received;
  const auto moved = peers_.displacement(report_.received, bytes.subspan(right));
  report_.remark = !moved       ? "bytes from nowhere"
                   : *moved > 0 ? fmt::format("{} bytes lost", *moved)
                                : fmt::format("{} bytes repeated", -*moved);
  trace("wrong byte at {}: {}", report_.received, report_.remark);
  over_ = true;
}

// How much of the header may go in one write: up to where the next pause or the RST is due.
size_t EndRun::header_piece() const {
  uint64_t limit = plan_.header.size();
  if (header_pause_ < plan_.header_pauses.size()) limit = plan_.header_pauses[header_pause_].at;
  if (plan_.reset && plan_.reset->when == Reset::When::header) limit = std::min(limit, plan_.reset->at);
  return limit - std::min<uint64_t>(limit, header_sent_);
}

// What is left of the header and the stream's next bytes go in one call, so that one segment may have both.
bool EndRun::write_some() {
  pass_gates();
  const size_t header = header_piece();
  const bool header_whole =
      header_sent_ + header == plan_.header.size() && header_pause_ == plan_.header_pauses.size();
  const uint64_t limit = header_whole ? send_limit() : 0;
  const size_t length = limit > report_.sent ? draw_write_bytes(limit - report_.sent) : 0;
  if (header + length == 0) return false;
  iovec pieces[1 + Pattern::kIovMax];
  pieces[0] = {const_cast<char*>(plan_.header.data()) + header_sent_, header};
  const int count = length > 0 ? own_.gather(report_.sent, length, pieces + 1) : 0;
  msghdr message{};
  message.msg_iov = pieces + (header > 0 ? 0 : 1);
  message.msg_iovlen = static_cast<size_t>(count + (header > 0 ? 1 : 0));
  const ssize_t n = sendmsg(fd_, &message, MSG_NOSIGNAL);
  if (n < 0) {
    if (errno != EAGAIN) fail_with(errno);
    writable_ = false;
    return false;
  }
  report_.arrived = true;
  const auto of_header = std::min(static_cast<size_t>(n), header);
  const size_t of_stream = static_cast<size_t>(n) - of_header;
  if (of_header > 0) {
    header_sent_ += of_header;
    trace("wrote {} bytes of its header, {} of {}", of_header, header_sent_, plan_.header.size());
  }
  if (of_stream > 0) {
    trace("wrote {} bytes at {}", of_stream, report_.sent);
    report_.sent += of_stream;
    life_.sent[index_of(side_)].store(report_.sent, std::memory_order_relaxed);
  }
  if (static_cast<size_t>(n) < header + length) writable_ = false;
  take_pauses();
  return true;
}

bool EndRun::maybe_shut() {
  const bool planned = header_sent_ < plan_.header.size() || header_pause_ < plan_.header_pauses.size() ||
                       gate_ < plan_.gates.size() || send_pause_ < plan_.send_pauses.size();
  if (report_.fin_sent || planned || report_.sent != send_bytes_ || now_ms_ < send_from_ms_ ||
      reset_is_due()) {
    return false;
  }
  if (shutdown(fd_, SHUT_WR) != 0) {
    fail_with(errno);
    return false;
  }
  report_.arrived = report_.fin_sent = true;
  shut_ms_ = now_ms_;
  trace("sends FIN at {}", report_.sent);
  progress(now_ms_);
  return true;
}

bool EndRun::reset_is_due() const {
  if (!plan_.reset) return false;
  switch (plan_.reset->when) {
    case Reset::When::header:
      return header_sent_ >= plan_.reset->at;
    case Reset::When::sent:
      return header_sent_ == plan_.header.size() && report_.sent >= plan_.reset->at;
    case Reset::When::received:
      return report_.received >= plan_.reset->at;
    case Reset::When::elapsed:
      return now_ms_ - began_ms_ >= static_cast<int64_t>(plan_.reset->at);
    case Reset::When::shut:
      return report_.fin_sent && now_ms_ - shut_ms_ >= static_cast<int64_t>(plan_.reset->at);
  }
  return false;
}

// In other states the kernel sends none: the peer's RST came first, or both streams have ended as they should
// (their last state, TIME_WAIT, reads as CLOSE too: the error tells them apart).
bool EndRun::try_reset() {
  const uint8_t state = tcp_state(fd_);
  if (state == TCP_CLOSE) {
    const int error = pending_error(fd_);
    if (error != 0) fail_with(error);
    return error != 0;
  }
  if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT && state != TCP_FIN_WAIT1 &&
      state != TCP_FIN_WAIT2) {
    return false;
  }
  report_.arrived = report_.reset_sent = true;
  trace("sends RST; sent {}, received {}", report_.sent, report_.received);
  over_ = true;
  return true;
}

void EndRun::fail_with(int error) {
  const bool refused = !report_.arrived && (error == ECONNREFUSED || error == ETIMEDOUT ||
                                            error == EHOSTUNREACH || error == ENETUNREACH);
  report_.error = error;
  over_ = true;
  trace("sees {} after {} sent, {} received", strerrorname_np(error), report_.sent, report_.received);
  if (refused) return;
  report_.arrived = report_.reset_seen = true;
  // What came before the RST must still be right. A 0 means nothing now: the error has been taken.
  for (ssize_t n; !report_.wrong_at && (n = recv(fd_, read_buffer, kReadMax, MSG_DONTWAIT)) > 0;) {
    check({read_buffer, static_cast<size_t>(n)});
  }
}

void EndRun::set_wake() {
  int64_t wake = INT64_MAX;
  const auto at = [&](int64_t ms) {
    if (ms > now_ms_) wake = std::min(wake, ms);
  };
  at(send_from_ms_);
  at(read_from_ms_);
  if (plan_.reset && plan_.reset->when == Reset::When::elapsed) {
    at(began_ms_ + static_cast<int64_t>(plan_.reset->at));
  }
  if (plan_.reset && plan_.reset->when == Reset::When::shut && report_.fin_sent) {
    at(shut_ms_ + static_cast<int64_t>(plan_.reset->at));
  }
  if (send_bytes_ == kWithoutEnd) {
    at(began_ms_ + plan_.send_for_ms);
    if (plan_.pace_bytes_per_s > 0) at(now_ms_ + 1000 / static_cast<int64_t>(kPaceTicksPerS));
  }
  wake_at_ms_ = wake;
}

}  // namespace penstock::torture
