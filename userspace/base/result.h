// SPDX-License-Identifier: Apache-2.0
// base/result.h: Result<T>, how start-up and configuration fail: up to main, printed once, with a hint.
// A flow's own failure is a CloseReason, our own bug an assert: neither uses this.
#pragma once
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace penstock {

struct Error {
  std::string message;  // one line, says what to do where that is known
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : v_(std::move(value)) {}      // NOLINT: implicit on purpose
  Result(Error error) : v_(std::move(error)) {}  // NOLINT
  bool ok() const { return v_.index() == 0; }
  explicit operator bool() const { return ok(); }
  // REQUIRES: ok()
  T& value() & { return std::get<0>(v_); }
  const T& value() const& { return std::get<0>(v_); }
  T&& value() && { return std::get<0>(std::move(v_)); }
  T* operator->() { return &value(); }
  T& operator*() { return value(); }
  // REQUIRES: !ok()
  const Error& error() const { return std::get<1>(v_); }

 private:
  std::variant<T, Error> v_;
};

struct Nothing {};
using Status = Result<Nothing>;

}  // namespace penstock
