#include "picture.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <stb/stb_image.h>
#include <stb/stb_image_write.h>
#include <stdexcept>

namespace {

// Which pixels of `mask` have an unset neighbour; the picture's border does not count.
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

}  // namespace

Picture read_picture(const std::string &file) {
  int width = 0;
  int height = 0;
  const std::unique_ptr<stbi_uc, void (*)(void *)> decoded(stbi_load(file.c_str(), &width, &height, nullptr, 3),
                                                          stbi_image_free);
  if (!decoded) throw std::runtime_error(file + ": " + stbi_failure_reason());
  Picture picture{static_cast<std::uint32_t>(width), static_cast<std::uint32_t>(height), {}};
  picture.pixels.assign(decoded.get(), decoded.get() + std::size_t{picture.width} * picture.height * 3);
  return picture;
}

void write_png(const std::string &file, std::uint32_t width, std::uint32_t height, int channels,
               const std::uint8_t *pixels) {
  const int w = static_cast<int>(width);
  if (stbi_write_png(file.c_str(), w, static_cast<int>(height), channels, pixels, w * channels) == 0) {
    throw std::runtime_error("cannot write " + file);
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
