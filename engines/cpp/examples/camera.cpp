// A camera loop: reads frames from standard input, says how much of each is in focus, and writes their maps.
//
//   ffmpeg -loglevel error -f v4l2 -i /dev/video0 -f rawvideo -pix_fmt rgb24 -s 640x480 - | camera lite.onnx 640 480
//   ffmpeg -loglevel error -i film.mp4 -f rawvideo -pix_fmt rgb24 -s 640x480 - | camera lite.onnx 640 480 maps.gray
//
// The engine and the frame's buffer are made once.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <r2mrf/r2mrf.hpp>
#include <stdexcept>
#include <string>

namespace {

// How sharp the middle is, where a photographer aims: the mean of the map in the central ninth of the frame, 0 to 1.
double aim(const r2mrf::Map<std::uint8_t> &map) {
  double sum = 0;
  std::size_t pixels = 0;
  for (std::uint32_t y = map.height / 3; y < map.height - map.height / 3; ++y) {
    for (std::uint32_t x = map.width / 3; x < map.width - map.width / 3; ++x, ++pixels) {
      sum += map.values[std::size_t{y} * map.width + x];
    }
  }
  return sum / (255.0 * static_cast<double>(pixels));
}

double share_in_focus(const r2mrf::Map<std::uint8_t> &map) {
  std::size_t sharp = 0;
  for (const auto value : map.values) sharp += value >= 128;
  return static_cast<double>(sharp) / static_cast<double>(map.values.size());
}

std::uint32_t side(const char *text) {
  char *end = nullptr;
  const auto value = std::strtoul(text, &end, 10);
  return *end == '\0' && value >= 1 && value <= 16384 ? static_cast<std::uint32_t>(value) : 0;
}

}  // namespace

int main(int argc, char **argv) {
  const std::uint32_t width = argc >= 4 ? side(argv[2]) : 0;
  const std::uint32_t height = argc >= 4 ? side(argv[3]) : 0;
  if (argc > 5 || width == 0 || height == 0) {
    std::fprintf(stderr, "usage: %s ARTIFACT WIDTH HEIGHT [MAPS] < frames of RGB bytes\n", argv[0]);
    return 2;
  }
  try {
    const r2mrf::Engine engine(argv[1]);
    std::ofstream maps;
    if (argc == 5) maps.open(argv[4], std::ios::binary);
    if (!maps) throw std::runtime_error(std::string(argv[4]) + " cannot be opened");
    std::vector<std::uint8_t> frame(std::size_t{width} * height * 3);
    std::size_t read = 0;
    for (int number = 0; (read = std::fread(frame.data(), 1, frame.size(), stdin)) == frame.size(); ++number) {
      const auto start = std::chrono::steady_clock::now();
      const auto map = engine.run_u8({frame.data(), width, height});
      const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
      std::printf("frame %d: %.0f %% in focus, %.2f in the middle, %.1f ms\n", number, 100 * share_in_focus(map),
                  aim(map), took.count());
      std::fflush(stdout);
      const auto *bytes = reinterpret_cast<const char *>(map.values.data());
      if (maps.is_open() && !maps.write(bytes, static_cast<std::streamsize>(map.values.size()))) {
        throw std::runtime_error(std::string(argv[4]) + " cannot be written: is the disk full?");
      }
    }
    if (read != 0) {
      std::fprintf(stderr, "the last frame has %zu of %zu bytes: is it %ux%u, RGB?\n", read, frame.size(), width, height);
      return 1;
    }
    if (argc == 5 && !maps.flush()) {
      std::fprintf(stderr, "%s cannot be written\n", argv[4]);
      return 1;
    }
    return 0;
  } catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
