#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace r2mrf_internal {
namespace {

// For every output sample: the first input sample that counts, how many do, and where their weights begin.
struct Windows {
  struct Window {
    std::uint32_t first;
    std::uint32_t count;
    std::size_t weights;
  };
  std::vector<Window> windows;
  std::vector<double> weights;
};

Windows triangles(std::uint32_t from, std::uint32_t to) {
  const double scale = static_cast<double>(from) / to;
  const double support = std::max(scale, 1.0);
  const double inverse = 1.0 / support;
  Windows found;
  found.windows.reserve(to);
  for (std::uint32_t i = 0; i < to; ++i) {
    const double centre = (i + 0.5) * scale;
    const double last = static_cast<double>(from);
    const auto first = static_cast<std::uint32_t>(std::max(centre - support + 0.5, 0.0));
    const auto end = static_cast<std::uint32_t>(std::min(centre + support + 0.5, last));
    const std::size_t begin = found.weights.size();
    double sum = 0;
    for (std::uint32_t x = first; x < end; ++x) {
      const double distance = std::abs((x - centre + 0.5) * inverse);
      const double weight = distance < 1.0 ? 1.0 - distance : 0.0;
      found.weights.push_back(weight);
      sum += weight;
    }
    if (sum != 0.0) {
      for (std::size_t k = begin; k < found.weights.size(); ++k) found.weights[k] /= sum;
    }
    found.windows.push_back({first, end - first, begin});
  }
  return found;
}

constexpr unsigned kBits = 22;  // a byte, the overshoot of its sum and the sign take the other 10 of 32
constexpr std::int32_t kHalf = std::int32_t{1} << (kBits - 1U);

std::vector<std::int32_t> fixed_point(const std::vector<double> &weights) {
  std::vector<std::int32_t> fixed;
  fixed.reserve(weights.size());
  for (const double w : weights) fixed.push_back(static_cast<std::int32_t>(0.5 + w * (1U << kBits)));
  return fixed;
}

std::uint8_t byte(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> kBits, 0, 255)); }

void along_row(const std::uint8_t *row, const Windows &to, const std::vector<std::int32_t> &weights, std::uint8_t *out) {
  for (const auto &window : to.windows) {
    std::int32_t a = kHalf;
    std::int32_t b = kHalf;
    std::int32_t c = kHalf;
    const std::int32_t *w = weights.data() + window.weights;
    const std::uint8_t *pixel = row + std::size_t{window.first} * 3;
    for (std::uint32_t k = 0; k < window.count; ++k, pixel += 3) {
      a += pixel[0] * w[k];
      b += pixel[1] * w[k];
      c += pixel[2] * w[k];
    }
    *out++ = byte(a);
    *out++ = byte(b);
    *out++ = byte(c);
  }
}

// One output row from rows that begin `stride` bytes apart. `sums` has room for `width` values.
void down_columns(const std::uint8_t *rows, std::size_t stride, std::size_t width, const Windows::Window &window,
                  const std::vector<std::int32_t> &weights, std::vector<std::int32_t> &sums, std::uint8_t *out) {
  std::fill(sums.begin(), sums.end(), kHalf);
  for (std::uint32_t k = 0; k < window.count; ++k) {
    const std::uint8_t *row = rows + (std::size_t{window.first} + k) * stride;
    const std::int32_t w = weights[window.weights + k];
    for (std::size_t x = 0; x < width; ++x) sums[x] += row[x] * w;
  }
  std::transform(sums.begin(), sums.end(), out, byte);
}

void along_row(const float *row, const Windows &to, float *out) {
  for (const auto &window : to.windows) {
    double sum = 0;
    for (std::uint32_t k = 0; k < window.count; ++k) {
      sum += static_cast<double>(row[window.first + k]) * to.weights[window.weights + k];
    }
    *out++ = static_cast<float>(sum);
  }
}

void down_columns(const float *rows, const Windows &to, std::uint32_t y, std::vector<double> &sums, float *out) {
  const auto &window = to.windows[y];
  const std::size_t width = sums.size();
  std::fill(sums.begin(), sums.end(), 0.0);
  for (std::uint32_t k = 0; k < window.count; ++k) {
    const float *row = rows + (std::size_t{window.first} + k) * width;
    const double w = to.weights[window.weights + k];
    for (std::size_t x = 0; x < width; ++x) sums[x] += static_cast<double>(row[x]) * w;
  }
  std::transform(sums.begin(), sums.end(), out, [](double sum) { return static_cast<float>(sum); });
}

void swap_ends(std::uint8_t *pixels, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) std::swap(pixels[3 * i], pixels[3 * i + 2]);
}

// Resizes every row to the new width.
void all_rows(const Pixels &image, std::uint32_t width, std::uint8_t *out) {
  const std::size_t stride = std::size_t{width} * 3;
  if (image.width == width) {
    for (std::uint32_t y = 0; y < image.height; ++y) std::memcpy(out + y * stride, image.data + y * image.stride, stride);
    return;
  }
  const auto columns = triangles(image.width, width);
  const auto weights = fixed_point(columns.weights);
  for (std::uint32_t y = 0; y < image.height; ++y) {
    along_row(image.data + y * image.stride, columns, weights, out + y * stride);
  }
}

// Resizes every column to the new height.
void all_columns(const Pixels &image, std::uint32_t height, std::uint8_t *out) {
  const std::size_t width = std::size_t{image.width} * 3;
  const auto lines = triangles(image.height, height);
  const auto weights = fixed_point(lines.weights);
  std::vector<std::int32_t> sums(width);
  for (std::uint32_t y = 0; y < height; ++y) {
    down_columns(image.data, image.stride, width, lines.windows[y], weights, sums, out + y * width);
  }
}

}  // namespace

bool columns_first(std::uint32_t width, std::uint32_t height, std::uint32_t to_width, std::uint32_t to_height) {
  const auto change = [](std::uint32_t from, std::uint32_t to) { return std::int64_t{from} - std::int64_t{to}; };
  return to_height < height && change(height, to_height) > 2 * change(width, to_width);
}

void resize_rgb(const Pixels &image, std::uint32_t width, std::uint32_t height, std::uint8_t *out) {
  if (image.height == height) {
    all_rows(image, width, out);
  } else if (image.width == width) {
    all_columns(image, height, out);
  } else if (columns_first(image.width, image.height, width, height)) {
    std::vector<std::uint8_t> between(std::size_t{image.width} * height * 3);
    all_columns(image, height, between.data());
    all_rows({between.data(), image.width, height, std::size_t{image.width} * 3, false}, width, out);
  } else {
    std::vector<std::uint8_t> between(std::size_t{width} * image.height * 3);
    all_rows(image, width, between.data());
    all_columns({between.data(), width, image.height, std::size_t{width} * 3, false}, height, out);
  }
  if (image.bgr) swap_ends(out, std::size_t{width} * height);
}

void resize_map(const float *map, std::uint32_t width, std::uint32_t height, std::uint32_t to_width,
                std::uint32_t to_height, const RowSink &sink) {
  const auto columns = triangles(width, to_width);
  const auto lines = triangles(height, to_height);
  const bool is_wide = width == to_width;
  const bool late = !is_wide && columns_first(width, height, to_width, to_height);
  std::vector<float> wide;
  if (!is_wide && !late) {
    wide.resize(std::size_t{to_width} * height);
    for (std::uint32_t y = 0; y < height; ++y) {
      along_row(map + std::size_t{y} * width, columns, wide.data() + std::size_t{y} * to_width);
    }
    map = wide.data();
    width = to_width;
  }
  std::vector<double> sums(width);
  std::vector<float> line(width);
  std::vector<float> made(late ? to_width : 0);
  for (std::uint32_t y = 0; y < to_height; ++y) {
    const float *row = map + std::size_t{y} * width;
    if (height != to_height) {
      down_columns(map, lines, y, sums, line.data());
      row = line.data();
    }
    if (late) {
      along_row(row, columns, made.data());
      row = made.data();
    }
    sink(y, row);
  }
}

}  // namespace r2mrf_internal
