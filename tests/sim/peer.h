// SPDX-License-Identifier: Apache-2.0
// sim/peer.h: a client or a server beyond the wire: says its stream in portions, hears the other's, ends in
// one of the ways in which peers end, and holds every byte it hears against the place where it belongs.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "sim/kernel.h"

namespace penstock::sim {

// What a peer is going to do.
struct Talk {
  std::string first;       // its first bytes: a PROXY header, a hello
  uint64_t say_bytes = 0;  // in all
  uint32_t portion = 1460;
  uint64_t pause_ns = 0;  // between portions, at most
  uint32_t read_portion = 64 << 10;
  uint64_t read_pause_ns = 0;
  uint64_t begin_ns = 0;      // says nothing before
  uint64_t answer_after = 0;  // and not before it has heard so many bytes
  enum End { fin, fin_after_eof, reset, close, silent } end = fin;
  uint64_t linger_ns = 0;           // between the last byte and the end
  uint64_t reset_at_ns = 0;         // after its beginning; 0: never
  uint64_t urgent_at = UINT64_MAX;  // this byte is urgent
  uint32_t receive_buffer = 128 << 10;
  bool ends_by_itself() const { return end == fin && reset_at_ns == 0; }
};

class Peer {
 public:
  Peer(Kernel& kernel, std::string name, const Talk& talk);
  void begin(Socket* socket);

  Socket* socket = nullptr;
  const Talk talk;
  Stream out;
  uint64_t said = 0, heard = 0;
  bool heard_eof = false, heard_reset = false;
  bool said_fin = false, did_reset = false, gone = false;
  bool over() const {  // one that never ends holds on to a connection that the other side has closed
    const bool left = heard_eof && talk.end == Talk::silent && socket->other->closed;
    return !socket || gone || heard_reset || left;
  }
  // What comes, in order. Violates when it does not belong here.
  std::function<void(const Extent&)> on_bytes;
  std::function<void()> on_eof;

 private:
  void speak();
  void listen();
  void finish();
  void hang_up();
  Kernel& kernel_;
  bool ended_ = false;
  uint64_t idle_ns_ = 0;  // since when it has waited for something to read, about
};

}  // namespace penstock::sim
