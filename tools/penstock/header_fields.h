// SPDX-License-Identifier: Apache-2.0
// tools/penstock/header_fields.h: a PROXY header as people read it, field by field.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace penstock::command {

struct HeaderField {
  size_t offset;
  std::span<const uint8_t> bytes;
  std::string meaning;
  bool known = true;  // false: a placeholder, each flow has its own
};

// Every byte is in one field. `unique_id_known`: false makes UNIQUE_ID and what depends on it, CRC32C,
// placeholders. REQUIRES: `header` is what proxy_protocol::encode() wrote for version 2.
std::vector<HeaderField> header_fields(std::span<const uint8_t> header, bool unique_id_known);

// Lines of at most 16 bytes: offset, bytes in hexadecimal, meaning.
std::string header_dump(const std::vector<HeaderField>& fields);

// Of a placeholder: "??" for each byte.
std::string hexadecimal(const HeaderField& field);
std::string hexadecimal(std::span<const uint8_t> bytes, const char* between = "");

}  // namespace penstock::command
