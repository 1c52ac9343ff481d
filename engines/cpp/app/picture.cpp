#include "picture.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <memory>
#include <stb/stb_image.h>
#include <string>
#include <system_error>
#include <utility>

#include "exif.h"
#include "failure.h"
#include "file.h"
#include "resize.h"

namespace {

constexpr std::int64_t kMostPixels = 178'956'970;  // Pillow's limit

struct CloseFile {
  void operator()(std::FILE *file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

File opened(const std::filesystem::path &path) {
  if (const auto why = r2mrf_internal::why_not_a_file(path); !why.empty()) throw FileError(why);
  File file(std::fopen(path.c_str(), "rb"));
  if (!file) throw FileError(path.string() + " cannot be read: " + std::generic_category().message(errno));
  return file;
}

// By the file's EXIF data. The file's bytes are freed before the pixels are decoded.
unsigned orientation_of(const std::filesystem::path &path, std::FILE *file) {
  std::vector<std::uint8_t> bytes(std::filesystem::file_size(path));
  bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file));
  std::rewind(file);
  return exif_orientation(bytes.data(), bytes.size());
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

// The pixels in focus from which one that is not is at most `width` steps away, to the sides, up or down.
std::vector<bool> outline(const r2mrf::Map<std::uint8_t> &map, std::uint32_t width) {
  constexpr std::uint8_t kInFocus = 128;  // of 255: the bytes that 0.5 and more are rounded to
  const std::size_t columns = map.width;
  const std::size_t size = map.values.size();
  const std::uint32_t far = width + 1;
  std::vector<std::uint16_t> steps(size);  // to the nearest pixel that is not in focus, as far as is known
  const auto nearer = [&](std::size_t i, bool there, std::size_t neighbour) {
    if (there) steps[i] = static_cast<std::uint16_t>(std::min<std::uint32_t>(steps[i], steps[neighbour] + 1U));
  };
  for (std::size_t i = 0; i < size; ++i) {
    steps[i] = static_cast<std::uint16_t>(map.values[i] < kInFocus ? 0 : far);
    nearer(i, i % columns != 0, i - 1);
    nearer(i, i >= columns, i - columns);
  }
  std::vector<bool> line(size);
  for (std::size_t i = size; i-- > 0;) {
    nearer(i, (i + 1) % columns != 0, i + 1);
    nearer(i, i + columns < size, i + columns);
    line[i] = steps[i] != 0 && steps[i] <= width;
  }
  return line;
}

}  // namespace

Picture read_picture(const std::filesystem::path &path) {
  const File file = opened(path);
  int width = 0;
  int height = 0;
  const auto damaged = [&] { return FileError(path.string() + " is damaged or in an unknown format: convert it to PNG or JPEG"); };
  if (stbi_info_from_file(file.get(), &width, &height, nullptr) == 0) throw damaged();
  if (std::int64_t{width} * height > kMostPixels) {
    throw FileError(path.string() + " has more than " + std::to_string(kMostPixels / 1'000'000) +
                    " million pixels: scale it down first");
  }
  const unsigned orientation = orientation_of(path, file.get());
  Picture picture;
  {
    const std::unique_ptr<stbi_uc, void (*)(void *)> decoded(stbi_load_from_file(file.get(), &width, &height, nullptr, 3),
                                                            stbi_image_free);
    if (!decoded) throw damaged();
    picture.width = static_cast<std::uint32_t>(width);
    picture.height = static_cast<std::uint32_t>(height);
    picture.pixels.assign(decoded.get(), decoded.get() + std::size_t{picture.width} * picture.height * 3);
  }
  return upright(std::move(picture), orientation);
}

void reduce(Picture &image, r2mrf::Map<std::uint8_t> &map, std::uint32_t side) {
  const std::uint32_t longest = std::max(image.width, image.height);
  if (longest <= side) return;
  const auto reduced = [&](std::uint32_t of) {
    return std::max(1U, static_cast<std::uint32_t>(std::floor(static_cast<double>(side) / longest * of + 0.5)));
  };
  Picture small{reduced(image.width), reduced(image.height), {}};
  small.pixels.resize(std::size_t{small.width} * small.height * 3);
  const r2mrf_internal::Pixels whole{image.pixels.data(), image.width, image.height, std::size_t{image.width} * 3, false};
  r2mrf_internal::resize_rgb(whole, small.width, small.height, small.pixels.data());
  image = std::move(small);  // frees the large one before the map becomes floats
  const std::vector<float> levels(map.values.begin(), map.values.end());
  r2mrf::Map<std::uint8_t> found{image.width, image.height, {}};
  found.values.reserve(std::size_t{found.width} * found.height);
  r2mrf_internal::resize_map(levels.data(), map.width, map.height, found.width, found.height, [&](std::uint32_t, const float *row) {
    std::transform(row, row + found.width, std::back_inserter(found.values),
                   [](float level) { return static_cast<std::uint8_t>(level + 0.5F); });
  });
  map = std::move(found);
}

void draw_overlay(Picture &image, const r2mrf::Map<std::uint8_t> &map) {
  const std::vector<bool> line = outline(map, std::max(1U, std::max(image.width, image.height) / 400));
  constexpr std::array<std::uint8_t, 3> kLine{255, 210, 0};
  for (std::size_t i = 0; i < map.values.size(); ++i) {
    std::uint8_t *pixel = image.pixels.data() + 3 * i;
    if (line[i]) {
      std::copy(kLine.begin(), kLine.end(), pixel);
      continue;
    }
    const float weight = static_cast<float>(map.values[i]) / 255.0F;
    const auto r = static_cast<float>(pixel[0]);
    const auto g = static_cast<float>(pixel[1]);
    const auto b = static_cast<float>(pixel[2]);
    const float dark = (1 - weight) * 0.35F * (0.299F * r + 0.587F * g + 0.114F * b);
    for (std::size_t c = 0; c < 3; ++c) {
      const float value = weight * static_cast<float>(pixel[c]) + dark;
      pixel[c] = static_cast<std::uint8_t>(std::clamp(value + 0.5F, 0.0F, 255.0F));
    }
  }
}
