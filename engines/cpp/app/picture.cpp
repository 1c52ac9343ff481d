#include "picture.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <stb/stb_image.h>
#include <stb/stb_image_write.h>
#include <utility>

#include "exif.h"

namespace {

// The pixels of `mask` whose neighbours are all set too. What lies outside the picture counts as set.
std::vector<bool> eroded(const std::vector<bool> &mask, std::size_t width, std::size_t height) {
  std::vector<bool> inner(mask.size());
  for (std::size_t y = 0; y < height; ++y) {
    for (std::size_t x = 0; x < width; ++x) {
      const std::size_t i = y * width + x;
      inner[i] = mask[i] && (y == 0 || mask[i - width]) && (y + 1 == height || mask[i + width]) &&
                 (x == 0 || mask[i - 1]) && (x + 1 == width || mask[i + 1]);
    }
  }
  return inner;
}

std::vector<std::uint8_t> content(const std::string &file) {
  std::error_code why;
  const auto size = std::filesystem::file_size(file, why);
  if (why == std::errc::no_such_file_or_directory) throw FileError(file + ": no such file");
  std::ifstream in(file, std::ios::binary);
  std::vector<std::uint8_t> bytes(why ? 0 : size);
  if (why || !in.read(reinterpret_cast<char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
    throw FileError(file + " cannot be read: give an image file that you have permission to read");
  }
  return bytes;
}

// Turns a picture upright. Orientations from 5 on swap rows and columns.
Picture upright(Picture picture, unsigned orientation) {
  if (orientation == 1) return picture;
  const bool swapped = orientation >= 5;
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Picture turned{swapped ? picture.height : picture.width, swapped ? picture.width : picture.height, {}};
  turned.pixels.reserve(picture.pixels.size());
  for (std::size_t y = 0; y < turned.height; ++y) {
    for (std::size_t x = 0; x < turned.width; ++x) {
      const std::size_t column = swapped ? y : x;
      const std::size_t row = swapped ? x : y;
      const std::size_t i = (from_below ? picture.height - 1 - row : row) * picture.width +
                            (from_right ? picture.width - 1 - column : column);
      const std::uint8_t *pixel = picture.pixels.data() + 3 * i;
      turned.pixels.insert(turned.pixels.end(), pixel, pixel + 3);
    }
  }
  return turned;
}

}  // namespace

Picture read_picture(const std::string &file) {
  const std::vector<std::uint8_t> bytes = content(file);
  if (bytes.size() > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    throw FileError(file + " is too large: give an image of less than 2 GiB");
  }
  int width = 0;
  int height = 0;
  const std::unique_ptr<stbi_uc, void (*)(void *)> decoded(
      stbi_load_from_memory(bytes.data(), static_cast<int>(bytes.size()), &width, &height, nullptr, 3), stbi_image_free);
  if (!decoded) throw FileError(file + " is damaged or in an unknown format: convert it to PNG or JPEG");
  Picture picture{static_cast<std::uint32_t>(width), static_cast<std::uint32_t>(height), {}};
  picture.pixels.assign(decoded.get(), decoded.get() + std::size_t{picture.width} * picture.height * 3);
  return upright(std::move(picture), exif_orientation(bytes.data(), bytes.size()));
}

void write_png(const std::string &file, std::uint32_t width, std::uint32_t height, int channels,
               const std::uint8_t *pixels) {
  const int w = static_cast<int>(width);
  std::ofstream out(file, std::ios::binary);
  const auto write = [](void *to, void *bytes, int size) {
    static_cast<std::ofstream *>(to)->write(static_cast<const char *>(bytes), size);
  };
  if (stbi_write_png_to_func(write, &out, w, static_cast<int>(height), channels, pixels, w * channels) == 0 || !out.flush()) {
    throw FileError("cannot write " + file + ": choose a folder with -o that you may write to, on a disk with free space");
  }
}

Picture overlay(const Picture &image, const r2mrf::Map<float> &map) {
  Picture shown = image;
  std::vector<bool> focused(map.values.size());
  for (std::size_t i = 0; i < map.values.size(); ++i) {
    const float weight = map.values[i];
    focused[i] = weight >= 0.5F;
    std::uint8_t *pixel = shown.pixels.data() + 3 * i;
    const auto r = static_cast<float>(pixel[0]);
    const auto g = static_cast<float>(pixel[1]);
    const auto b = static_cast<float>(pixel[2]);
    const float grey = 0.299F * r + 0.587F * g + 0.114F * b;
    const std::array<float, 3> colour{r, g, b};
    for (std::size_t c = 0; c < 3; ++c) {
      const float value = weight * colour[c] + (1 - weight) * 0.35F * grey;
      pixel[c] = static_cast<std::uint8_t>(std::clamp(value + 0.5F, 0.0F, 255.0F));
    }
  }
  auto inner = focused;
  for (std::uint32_t n = std::max(1U, std::max(image.width, image.height) / 400); n > 0; --n) {
    inner = eroded(inner, image.width, image.height);
  }
  constexpr std::array<std::uint8_t, 3> kLine{255, 210, 0};
  for (std::size_t i = 0; i < focused.size(); ++i) {
    if (focused[i] && !inner[i]) std::copy(kLine.begin(), kLine.end(), shown.pixels.begin() + static_cast<std::ptrdiff_t>(3 * i));
  }
  return shown;
}
