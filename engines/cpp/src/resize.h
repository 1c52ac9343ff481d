// Antialiased bilinear resizing as Pillow does it, to the last bit.
//
// Pillow convolves first along rows, then along columns; since version 13 first along columns where that takes away more than
// twice as many rows as the other takes columns. Every output sample has a triangle of weights around its centre,
// as wide as the scale where an image shrinks; the weights are cut at the border and divided by their sum. Bytes are
// convolved in integers: weights rounded to 22 fractional bits, sums rounded and clipped to a byte after each direction.
// Floats are summed in double precision in the order of the samples and rounded to single after each direction.
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

// Whether columns are convolved before rows, where both are.
bool columns_first(std::uint32_t width, std::uint32_t height, std::uint32_t to_width, std::uint32_t to_height);

// An image as height rows of width RGB pixels without gaps, at `out`.
void resize_rgb(const Pixels &image, std::uint32_t width, std::uint32_t height, std::uint8_t *out);

// Takes row number y of a resized map.
using RowSink = std::function<void(std::uint32_t y, const float *row)>;

// A map of height rows of width values without gaps; `sink` is called for rows 0 to to_height - 1 in turn.
void resize_map(const float *map, std::uint32_t width, std::uint32_t height, std::uint32_t to_width,
                std::uint32_t to_height, const RowSink &sink);

}  // namespace r2mrf_internal
