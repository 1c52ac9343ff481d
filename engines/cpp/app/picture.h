// Reads photographs, and draws overlays.
#pragma once

#include <cstdint>
#include <filesystem>
#include <r2mrf/r2mrf.hpp>
#include <vector>

struct Picture {
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  std::vector<std::uint8_t> pixels;  // RGB

  [[nodiscard]] r2mrf::ImageView view() const { return {pixels.data(), width, height}; }
};

// Turns the picture upright by its EXIF orientation. Throws FileError if there is no such regular file, if it has more pixels
// than Python reads, or if stb cannot decode it.
Picture read_picture(const std::filesystem::path &file);

// Reduces a picture and its map, so that no side has more than `side` pixels.
void reduce(Picture &image, r2mrf::Map<std::uint8_t> &map, std::uint32_t side);

// Draws what is in focus in its own colours, the rest grey and dark, and a line where the map is 0.5, like overlay() in
// r2mrf_deploy/images.py. Draws into the picture itself, because at 100 megapixels another one would take 300 MB.
void draw_overlay(Picture &image, const r2mrf::Map<std::uint8_t> &map);
