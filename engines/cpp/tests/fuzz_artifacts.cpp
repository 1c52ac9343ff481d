// Opens damaged ONNX files and IR with their contract inside: each opens or is refused, and none counts as an internal error.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <r2mrf/r2mrf.h>

#include "check.h"
#include "damaged.h"

namespace {

namespace fs = std::filesystem;

std::string content(const fs::path &path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write(const fs::path &path, const std::string &bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  const fs::path folder = argv[1];
  const int inputs = std::atoi(argv[2]);
  const std::string weights = content(folder / "alone.bin");
  std::mt19937 random(1);
  int opened = 0;
  int refused = 0;
  for (const char *suffix : {".onnx", ".xml"}) {
    const std::string good = content(folder / (std::string("alone") + suffix));
    const fs::path path = folder / (std::string("fuzzed") + suffix);
    for (int i = 0; i < inputs; ++i) {
      write(path, i == 0 ? good : damaged(good, random));
      write(folder / "fuzzed.bin", i % 4 == 3 ? damaged(weights, random) : weights);
      r2mrf_engine *engine = nullptr;
      const r2mrf_status status = r2mrf_open(path.c_str(), 1, &engine);
      CHECK(status == R2MRF_OK || status == R2MRF_ARTIFACT);
      CHECK(i != 0 || status == R2MRF_OK);
      ++(status == R2MRF_OK ? opened : refused);
      r2mrf_close(engine);
    }
  }
  CHECK(refused > inputs / 2);
  std::printf("%d opened, %d refused\n", opened, refused);
  return exit_code();
}
