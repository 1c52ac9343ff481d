#include "message.h"

#include <cstddef>

namespace r2mrf_internal {
namespace {

unsigned byte_at(std::string_view text, std::size_t i) {
  return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
}

// Length in bytes of the first character of the text, by the table of RFC 3629; 0 if it is not valid UTF-8.
std::size_t character(std::string_view text) {
  const unsigned first = byte_at(text, 0);
  const unsigned second = byte_at(text, 1);
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return 0;
  const std::size_t length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte_at(text, i) & 0xc0U) != 0x80) return 0;
  }
  const bool overlong = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
  const bool not_a_character = (first == 0xed && second > 0x9f) || (first == 0xf4 && second > 0x8f);
  return overlong || not_a_character ? 0 : length;
}

// Also the separators of lines and paragraphs, and the marks of bidirectional writing: U+200E, U+200F, U+2028 to U+202E,
// U+2066 to U+2069.
bool is_control(std::string_view text) {
  const unsigned first = byte_at(text, 0);
  const unsigned third = byte_at(text, 2);
  if (first != 0xe2) return first < 0x20 || first == 0x7f || (first == 0xc2 && byte_at(text, 1) < 0xa0);
  const bool in_80 = byte_at(text, 1) == 0x80 && (third == 0x8e || third == 0x8f || (third >= 0xa8 && third <= 0xae));
  return in_80 || (byte_at(text, 1) == 0x81 && third >= 0xa6 && third <= 0xa9);
}

}  // namespace

std::string one_line(std::string_view text) {
  std::string line;
  while (!text.empty()) {
    const std::size_t length = character(text);
    if (length == 0) {
      line += '?';
    } else if (is_control(text)) {
      line += ' ';
    } else {
      line += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return line;
}

void print_line(std::FILE *to, std::string_view text) { std::fprintf(to, "%s\n", one_line(text).c_str()); }

std::string counted(std::uint64_t number, const std::string &noun) {
  return std::to_string(number) + ' ' + noun + (number == 1 ? "" : "s");
}

}  // namespace r2mrf_internal
