// Feeds the fuzz target a fixed sequence of damaged inputs: bytes changed, removed and repeated. Needs no libFuzzer.
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>

#include "damaged.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size);

namespace {

constexpr int kInputs = 30000;

}  // namespace

int main() {
  using namespace std::string_literals;
  const std::string seeds[] = {
      R"({"format": "r2mrf-artifact/1", "kind": "plan", "sha256": "0", "companions": {"a": "b"}, "inputs": [{"name": "i",)"
      R"("dtype": "uint8", "shape": ["n", 2, 2, 3], "layout": "NHWC"}], "outputs": [], "profiles": {"i": {"min": [1], "max": [1]}},)"
      R"("preprocess": {"mean": [0, 0, 0], "std": [1, 1, 1], "color": "RGB", "fit": "letterbox", "longest_side": 64}, "precision": "fp32", "target": {"runtime":)"
      R"("tensorrt", "runtime_version": "1", "compute_capabilities": ["8.6"], "options": {}}})",
      "vtrt" + std::string(60, '\0') + "rest",
      "\xff\xd8\xff\xe1\0\x1e" "Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\xff\xda"s};
  std::mt19937 random(1);
  for (int i = 0; i < kInputs; ++i) {
    const std::string input = damaged(seeds[i % 3], random);
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t *>(input.data()), input.size());
  }
  std::printf("%d inputs\n", kInputs);
  return 0;
}
