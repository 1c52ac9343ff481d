#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace r2mrf_internal {
namespace {

// For every output sample: the first input sample with a weight, how many have one, and where its weights begin.
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

constexpr unsigned kBits = 22;  // a byte, its sum's overshoot and its sign take the other 10 of 32
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

void down_columns(const std::vector<std::uint8_t> &rows, std::size_t stride, const Windows &to, std::uint8_t *out) {
  const auto weights = fixed_point(to.weights);
  std::vector<std::int32_t> sums(stride);
  for (const auto &window : to.windows) {
    std::fill(sums.begin(), sums.end(), kHalf);
    for (std::uint32_t k = 0; k < window.count; ++k) {
      const std::uint8_t *row = rows.data() + (window.first + k) * stride;
      const std::int32_t w = weights[window.weights + k];
      for (std::size_t x = 0; x < stride; ++x) sums[x] += row[x] * w;
    }
    for (std::size_t x = 0; x < stride; ++x) *out++ = byte(sums[x]);
  }
}

void swap_ends(std::uint8_t *pixels, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) std::swap(pixels[3 * i], pixels[3 * i + 2]);
}

}  // namespace

void resize_rgb(const Pixels &image, std::uint32_t width, std::uint32_t height, std::uint8_t *out) {
  const std::size_t stride = std::size_t{width} * 3;
  const auto columns = triangles(image.width, width);
  const auto weights = fixed_point(columns.weights);
  const bool straight = image.height == height;
  std::vector<std::uint8_t> rows(straight ? 0 : stride * image.height);
  std::uint8_t *made = straight ? out : rows.data();
  for (std::uint32_t y = 0; y < image.height; ++y) {
    const std::uint8_t *row = image.data + y * image.stride;
    if (image.width == width) {
      std::memcpy(made + y * stride, row, stride);
    } else {
      along_row(row, columns, weights, made + y * stride);
    }
  }
  if (!straight) down_columns(rows, stride, triangles(image.height, height), out);
  if (image.bgr) swap_ends(out, std::size_t{width} * height);
}

void resize_map(const float *map, std::uint32_t width, std::uint32_t height, std::uint32_t to_width,
                std::uint32_t to_height, const RowSink &sink) {
  std::vector<float> wide;
  if (width != to_width) {
    const auto columns = triangles(width, to_width);
    wide.reserve(std::size_t{to_width} * height);
    for (std::uint32_t y = 0; y < height; ++y) {
      const float *row = map + std::size_t{y} * width;
      for (const auto &window : columns.windows) {
        double sum = 0;
        for (std::uint32_t k = 0; k < window.count; ++k) {
          sum += static_cast<double>(row[window.first + k]) * columns.weights[window.weights + k];
        }
        wide.push_back(static_cast<float>(sum));
      }
    }
    map = wide.data();
  }
  if (height == to_height) {
    for (std::uint32_t y = 0; y < height; ++y) sink(y, map + std::size_t{y} * to_width);
    return;
  }
  const auto lines = triangles(height, to_height);
  std::vector<double> sums(to_width);
  std::vector<float> line(to_width);
  for (std::uint32_t y = 0; y < to_height; ++y) {
    const auto &window = lines.windows[y];
    std::fill(sums.begin(), sums.end(), 0.0);
    for (std::uint32_t k = 0; k < window.count; ++k) {
      const float *row = map + (std::size_t{window.first} + k) * to_width;
      const double w = lines.weights[window.weights + k];
      for (std::size_t x = 0; x < to_width; ++x) sums[x] += static_cast<double>(row[x]) * w;
    }
    for (std::size_t x = 0; x < to_width; ++x) line[x] = static_cast<float>(sums[x]);
    sink(y, line.data());
  }
}

}  // namespace r2mrf_internal
