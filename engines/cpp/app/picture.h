// Reads photographs, and draws and writes pictures.
#pragma once

#include <cstdint>
#include <r2mrf/r2mrf.hpp>
#include <stdexcept>
#include <string>
#include <vector>

// A file cannot be read or written. The message is one line that says what to do.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Picture {
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  std::vector<std::uint8_t> pixels;  // RGB

  [[nodiscard]] r2mrf::ImageView view() const { return {pixels.data(), width, height}; }
};

// Turns the picture upright by its EXIF orientation. Throws FileError if the file is missing or stb cannot decode it.
Picture read_picture(const std::string &file);

// channels: 1 or 3. Throws FileError if the file cannot be written.
void write_png(const std::string &file, std::uint32_t width, std::uint32_t height, int channels,
               const std::uint8_t *pixels);

// Draws what is in focus in its own colours, the rest grey and dark, and a line where the map is 0.5, like overlay() in
// r2mrf_deploy/images.py.
Picture overlay(const Picture &image, const r2mrf::Map<float> &map);
