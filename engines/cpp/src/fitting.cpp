#include "fitting.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace r2mrf_internal {
namespace {

constexpr std::int64_t kSmallestSide = 32;  // the networks reduce by 32

struct Range {
  std::int64_t least;
  std::int64_t most;
};

Range range_of(const Manifest &manifest, std::size_t axis, std::int64_t longest) {
  const TensorSpec &input = manifest.inputs[0];
  if (input.shape[axis] != kFree) return {input.shape[axis], input.shape[axis]};
  Range range{kSmallestSide, longest};
  const auto least = manifest.smallest.find(input.name);
  const auto most = manifest.largest.find(input.name);
  if (least != manifest.smallest.end()) range.least = std::max(range.least, least->second[axis]);
  if (most != manifest.largest.end()) range.most = std::min(range.most, most->second[axis]);
  return range;
}

Size size_of(std::int64_t height, std::int64_t width) {
  return {static_cast<std::uint32_t>(height), static_cast<std::uint32_t>(width)};
}

// For every position from `before` in front of n samples: the sample that mirroring at the edges, again and again, puts there.
std::vector<std::size_t> mirrored(std::size_t n, std::size_t before, std::size_t count) {
  std::vector<std::size_t> indices;
  indices.reserve(count);
  const std::size_t period = 2 * n;
  const std::size_t start = period - before % period;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = (start + i) % period;
    indices.push_back(at < n ? at : period - 1 - at);
  }
  return indices;
}

}  // namespace

std::array<std::size_t, 2> spatial_axes(const TensorSpec &spec) {
  return spec.layout == "NCHW" ? std::array<std::size_t, 2>{2, 3} : std::array<std::size_t, 2>{1, 2};
}

Fitting fitting_of(const Size &photograph, const Manifest &manifest) {
  const Preprocess with = manifest.preprocess.value_or(Preprocess{});
  const auto [y, x] = spatial_axes(manifest.inputs[0]);
  const Range rows = range_of(manifest, y, with.longest_side);
  const Range columns = range_of(manifest, x, with.longest_side);
  const bool fixed = manifest.inputs[0].shape[y] != kFree && manifest.inputs[0].shape[x] != kFree;
  if (fixed && !with.letterbox) {
    const Size whole = size_of(rows.most, columns.most);
    return {whole, whole};
  }
  const double scale = std::min({1.0, static_cast<double>(rows.most) / photograph.height,
                                 static_cast<double>(columns.most) / photograph.width});
  const auto scaled = [&](std::uint32_t side) {
    return std::max(std::int64_t{1}, static_cast<std::int64_t>(std::floor(side * scale + 0.5)));
  };
  const std::int64_t height = scaled(photograph.height);
  const std::int64_t width = scaled(photograph.width);
  return {size_of(height, width), size_of(std::max(rows.least, height), std::max(columns.least, width))};
}

void place(const Pixels &photograph, const Fitting &fitting, std::uint8_t *out) {
  const auto &[content, canvas] = fitting;
  if (content == canvas) {
    resize_rgb(photograph, canvas.width, canvas.height, out);
    return;
  }
  std::vector<std::uint8_t> pixels(std::size_t{content.height} * content.width * 3);
  resize_rgb(photograph, content.width, content.height, pixels.data());
  const auto columns = mirrored(content.width, fitting.corner().width, canvas.width);
  for (const std::size_t row : mirrored(content.height, fitting.corner().height, canvas.height)) {
    const std::uint8_t *from = pixels.data() + row * content.width * 3;
    for (const std::size_t column : columns) out = std::copy_n(from + column * 3, 3, out);
  }
}

std::vector<float> cut(const float *map, const Size &size, const Fitting &fitting) {
  const auto &[content, canvas] = fitting;
  const Size corner = fitting.corner();
  std::vector<float> part;
  part.reserve(std::size_t{content.height} * content.width);
  resize_map(map, size.width, size.height, canvas.width, canvas.height, [&](std::uint32_t y, const float *row) {
    if (y < corner.height || y >= corner.height + content.height) return;
    part.insert(part.end(), row + corner.width, row + corner.width + content.width);
  });
  return part;
}

}  // namespace r2mrf_internal
