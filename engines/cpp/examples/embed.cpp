// A small program: writes the map of a synthetic photograph, sharp on the left and flat on the right, as a PGM file.
#include <cstdio>
#include <fstream>
#include <r2mrf/r2mrf.hpp>

namespace {

constexpr std::uint32_t kWidth = 320;
constexpr std::uint32_t kHeight = 240;

std::vector<std::uint8_t> photograph() {
  std::vector<std::uint8_t> pixels;
  for (std::uint32_t y = 0; y < kHeight; ++y) {
    for (std::uint32_t x = 0; x < kWidth; ++x) {
      const bool chequer = x < kWidth / 2 && ((x / 4 + y / 4) % 2 != 0);
      pixels.insert(pixels.end(), 3, chequer ? std::uint8_t{220} : std::uint8_t{90});
    }
  }
  return pixels;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s ARTIFACT MAP.pgm\n", argv[0]);
    return 2;
  }
  try {
    const r2mrf::Engine engine(argv[1]);
    const auto pixels = photograph();
    const auto map = engine.run_u8({pixels.data(), kWidth, kHeight});
    std::ofstream file(argv[2], std::ios::binary);
    file << "P5\n" << map.width << ' ' << map.height << "\n255\n";
    file.write(reinterpret_cast<const char *>(map.values.data()), static_cast<std::streamsize>(map.values.size()));
    std::printf("%s: %s\n", argv[2], engine.device().c_str());
    return file.flush() ? 0 : 1;
  } catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
