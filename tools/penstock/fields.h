// SPDX-License-Identifier: Apache-2.0
// tools/penstock/fields.h: reading the daemon's answer for people. A member that is missing or of another
// type than expected is shown as "-": command and daemon may be of two versions. All text comes out
// printable.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "daemon/json.h"

namespace penstock::command {

inline constexpr const char* kUnknown = "-";

// The member, or a null value that lives forever.
const Json& member(const Json& object, const char* key);

std::string text(const Json& object, const char* key);  // strings, numbers, booleans; "" becomes "-"
// What the daemon has escaped already: quotes and backslashes stay. "" when there is none.
std::string sentence(const Json& value);
std::string sentence(const Json& object, const char* key);
std::string list(const Json& object, const char* key);  // an array of those: "a, b"
std::optional<uint64_t> number(const Json& object, const char* key);
std::string size(const Json& object, const char* key);      // "1.5 MiB"
std::string duration(const Json& object, const char* key);  // of milliseconds: "3m05s"
std::string moment(const Json& object, const char* key);    // of seconds since the epoch: as the log has it
std::string age(const Json& object, const char* key);       // since then: "3m05s"

std::string size_text(uint64_t bytes);
std::string duration_text(uint64_t ms);

}  // namespace penstock::command
