// How a photograph lies in a network's input, and where its map is in the output: the C++ twin of r2mrf_deploy/fitting.py.
//
// A photograph keeps its aspect and is never enlarged. An input that it does not fill is filled up with its own pixels,
// mirrored at its edges.
#pragma once

#include <cstdint>
#include <vector>

#include "manifest.h"
#include "resize.h"

namespace r2mrf_internal {

struct Size {
  std::uint32_t height;
  std::uint32_t width;
};

inline bool operator==(const Size &a, const Size &b) { return a.height == b.height && a.width == b.width; }

struct Fitting {
  Size content;  // what the photograph is resized to
  Size canvas;   // the input, with the content in its middle

  // Where the content begins.
  [[nodiscard]] Size corner() const {
    return {(canvas.height - content.height) / 2, (canvas.width - content.width) / 2};
  }
};

// The axes of height and width.
std::array<std::size_t, 2> spatial_axes(const TensorSpec &spec);

// Fits a photograph into the input that the manifest describes. A free side becomes that of the resized photograph, within
// the profile and `longest_side`, and at least 32.
Fitting fitting_of(const Size &photograph, const Manifest &manifest);

// Writes the canvas with the photograph in it as RGB pixels without gaps.
void place(const Pixels &photograph, const Fitting &fitting, std::uint8_t *out);

// The part of a map that is the photograph's, of the content's size. A network may round the canvas's size: a map of another
// `size` is resized to the canvas first.
std::vector<float> cut(const float *map, const Size &size, const Fitting &fitting);

}  // namespace r2mrf_internal
