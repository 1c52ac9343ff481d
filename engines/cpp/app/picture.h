// Photographs in and pictures out.
#pragma once

#include <cstdint>
#include <r2mrf/r2mrf.hpp>
#include <string>
#include <vector>

struct Picture {
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  std::vector<std::uint8_t> pixels;  // RGB

  [[nodiscard]] r2mrf::ImageView view() const { return {pixels.data(), width, height}; }
};

// Throws std::runtime_error where stb cannot decode the file. EXIF orientations are not applied.
Picture read_picture(const std::string &file);

// channels: 1 or 3. Throws std::runtime_error where the file cannot be written.
void write_png(const std::string &file, std::uint32_t width, std::uint32_t height, int channels,
               const std::uint8_t *pixels);

// What is in focus in its own colours, the rest grey and dark, and a line where the map is 0.5: as
// r2mrf_deploy/images.py draws it.
Picture overlay(const Picture &image, const r2mrf::Map<float> &map);
