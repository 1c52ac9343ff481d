#include "exif.h"

#include <string_view>

namespace {

using namespace std::string_view_literals;

constexpr std::uint32_t kOrientation = 0x0112;
constexpr std::uint32_t kShort = 3;
constexpr std::uint32_t kLong = 4;

// An unsigned number of `width` bytes, big-endian unless `little`; 0 if `bytes` is too short.
std::uint32_t number(std::string_view bytes, std::size_t at, unsigned width, bool little = false) {
  if (at > bytes.size() || bytes.size() - at < width) return 0;
  std::uint32_t value = 0;
  for (unsigned i = 0; i < width; ++i) {
    const auto byte = static_cast<unsigned char>(bytes[at + (little ? width - 1 - i : i)]);
    value = value << 8U | byte;
  }
  return value;
}

std::string_view part(std::string_view bytes, std::size_t at, std::size_t length) {
  return at < bytes.size() ? bytes.substr(at, length) : std::string_view{};
}

// The EXIF data in a JPEG's segments, which end where the image data begin.
std::string_view exif_of_jpeg(std::string_view file) {
  std::size_t at = 2;
  while (number(file, at, 1) == 0xff) {
    const std::uint32_t marker = number(file, at + 1, 1);
    if (marker == 0xff) {  // padding
      ++at;
      continue;
    }
    const std::uint32_t length = number(file, at + 2, 2);  // includes its own two bytes
    if (marker == 0xda || marker == 0xd9 || length < 2) break;
    const std::string_view segment = part(file, at + 4, length - 2);
    if (marker == 0xe1 && segment.substr(0, 6) == "Exif\0\0"sv) return segment.substr(6);
    at += 2 + length;
  }
  return {};
}

std::string_view exif_of_png(std::string_view file) {
  for (std::size_t at = 8; at < file.size();) {
    const std::uint32_t length = number(file, at, 4);
    if (part(file, at + 4, 4) == "eXIf"sv) return part(file, at + 8, length);
    if (length > file.size()) break;
    at += std::size_t{12} + length;  // length, type and checksum
  }
  return {};
}

}  // namespace

unsigned exif_orientation(const std::uint8_t *file, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char *>(file), size);
  std::string_view exif;
  if (bytes.substr(0, 3) == "\xff\xd8\xff"sv) exif = exif_of_jpeg(bytes);
  if (bytes.substr(0, 8) == "\x89PNG\r\n\x1a\n"sv) exif = exif_of_png(bytes);
  const bool little = exif.substr(0, 4) == "II*\0"sv;
  if (!little && exif.substr(0, 4) != "MM\0*"sv) return 1;
  const std::size_t directory = number(exif, 4, 4, little);
  if (directory > exif.size()) return 1;
  const std::uint32_t entries = number(exif, directory, 2, little);
  for (std::size_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + 12 * i;  // tag, type, count, value
    const std::uint32_t type = number(exif, entry + 2, 2, little);
    if (number(exif, entry, 2, little) != kOrientation || (type != kShort && type != kLong)) continue;
    const std::uint32_t value = number(exif, entry + 8, type == kShort ? 2 : 4, little);
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}
