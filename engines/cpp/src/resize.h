// Antialiased bilinear resizing, identical to Pillow's to the last bit.
//
// Pillow convolves along rows first, then along columns. Since version 13 it starts with columns if that removes more
// than twice as many rows as the other pass removes columns. Each output sample has a triangle of weights around its
// centre, widened by the scale when an image shrinks; the weights are cut off at the border and divided by their sum.
// Bytes are convolved in integers: weights rounded to 22 fractional bits, sums rounded and clipped to a byte after each
// pass. Floats are summed in double precision in the order of the samples, and rounded to single after each pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace r2mrf_internal {

struct Pixels {
  const std::uint8_t *data;  // 3 bytes a pixel
  std::uint32_t width;
  std::uint32_t height;
  std::size_t stride;  // bytes from row to row
  bool bgr;
};

// Whether columns are convolved before rows when both are.
bool columns_first(std::uint32_t width, std::uint32_t height, std::uint32_t to_width, std::uint32_t to_height);

// Writes `image` to `out` as height rows of width RGB pixels without gaps.
void resize_rgb(const Pixels &image, std::uint32_t width, std::uint32_t height, std::uint8_t *out);

// Receives row y of a resized map.
using RowSink = std::function<void(std::uint32_t y, const float *row)>;

// `map`: height rows of width values without gaps. Calls `sink` for rows 0 to to_height - 1 in order.
void resize_map(const float *map, std::uint32_t width, std::uint32_t height, std::uint32_t to_width,
                std::uint32_t to_height, const RowSink &sink);

}  // namespace r2mrf_internal
