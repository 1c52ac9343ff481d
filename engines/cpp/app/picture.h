// Photographs in and pictures out.
#pragma once

#include <cstdint>
#include <r2mrf/r2mrf.hpp>
#include <stdexcept>
#include <string>
#include <vector>

// A file that cannot be read or written; the message is one line that says what to do.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Picture {
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  std::vector<std::uint8_t> pixels;  // RGB

  [[nodiscard]] r2mrf::ImageView view() const { return {pixels.data(), width, height}; }
};

// Upright by its EXIF orientation. Throws FileError where there is no such file, or stb cannot decode it.
Picture read_picture(const std::string &file);

// channels: 1 or 3. Throws FileError where the file cannot be written.
void write_png(const std::string &file, std::uint32_t width, std::uint32_t height, int channels,
               const std::uint8_t *pixels);

// What is in focus in its own colours, the rest grey and dark, and a line where the map is 0.5: as
// r2mrf_deploy/images.py draws it.
Picture overlay(const Picture &image, const r2mrf::Map<float> &map);
