// SPDX-License-Identifier: Apache-2.0
// differential/hello_maker.h: an endless row of ClientHellos from one seed, whole ones and damaged ones: of
// OpenSSL's client with varied options, and built field by field; their extensions in another order, twice or
// left out; cut into records anywhere; bits, bytes and lengths changed.
#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace penstock::test {

using Bytes = std::vector<uint8_t>;

// What the records of a stream carry, whatever they are.
Bytes payload_of(const Bytes& stream);
// Of a handshake message, as far as its lengths can be followed.
std::vector<size_t> extension_types(const Bytes& handshake);

class HelloMaker {
 public:
  explicit HelloMaker(uint64_t seed);
  Bytes next();  // a stream from its first byte

 private:
  size_t below(size_t n) { return static_cast<size_t>(random_() % n); }
  bool one_in(size_t n) { return below(n) == 0; }
  std::string name();
  Bytes openssl_handshake();
  Bytes built_handshake();
  void move_extensions(Bytes* handshake);
  void damage(Bytes* bytes, size_t near);
  Bytes in_records(const Bytes& handshake);

  std::mt19937_64 random_;
  std::vector<Bytes> openssl_;  // handshakes, made once: each costs as much as 50 of the others
};

}  // namespace penstock::test
